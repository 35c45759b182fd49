"""``garant host``: hosts as the management server knows them."""

import typer

from cli.output import plain
from cli.session import Session, command

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Hosts as the management server knows them."""


@command(app, "list")
def list_hosts(session: Session) -> None:
    """List all joined hosts: whether they answer, and whether they are attested.

    Example: garant host list
    """
    from garant.management.v1.management_pb2 import ListHostsRequest

    management = session.site().management()
    hosts = management.call(management.stub.ListHosts, ListHostsRequest()).hosts
    columns = ("name", "connected", "attested", "reason", "cluster", "agent_address", "host_id")
    session.show_list([plain(host) for host in hosts], columns, empty="no hosts have joined")
