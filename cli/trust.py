"""``garant trust``: the trust authority, as a trust administrator: hosts, anchors, policy, references, providers."""

import typer

from cli.trust_evidence import anchor, policy, reference
from cli.trust_hosts import app as host
from cli.trust_keys import principal, provider

app = typer.Typer(no_args_is_help=True)
app.add_typer(host, name="host", help="Hosts: list, show with their appraisal, approve, ban.")
app.add_typer(anchor, name="anchor", help="Anchors of trust in endorsement keys of TPMs.")
app.add_typer(policy, name="policy", help="The appraisal policy.")
app.add_typer(reference, name="reference", help="Reference boots: what a trusted host must have booted.")
app.add_typer(provider, name="provider", help="Trusted key providers of the key provider service.")
app.add_typer(principal, name="principal", help="Management servers whose placement grants are believed.")
