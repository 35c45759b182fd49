"""``garant trust provider`` and ``principal``: the key provider service."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import BadInput
from cli.output import plain
from cli.session import Session, command
from cli.trust_evidence import read_file

provider = typer.Typer(no_args_is_help=True)
principal = typer.Typer(no_args_is_help=True)


@principal.callback()
def _principals() -> None:
    """Management servers whose placement grants are believed."""


class Backend(StrEnum):
    """What holds a provider's primary key."""

    SOFTWARE = "software"


@command(provider, "create")
def create_provider(
    session: Session,
    name: Annotated[str, typer.Argument(help="Unique name: 1 to 64 lower-case letters, digits, dashes.")],
    backend: Annotated[Backend, typer.Option(help="What shall hold its primary key.")] = Backend.SOFTWARE,
) -> None:
    """Make a trusted key provider with a new primary key.

    Example: garant trust provider create trusted
    """
    from garant.keyprovider.v1 import keyprovider_pb2 as pb

    keyprovider = session.site().keyprovider()
    request = pb.CreateProviderRequest(name=name, backend=pb.Backend.Value(f"BACKEND_{backend.name}"))
    made = keyprovider.call(keyprovider.stub.CreateProvider, request).provider
    session.done(f"trusted key provider {made.name} is made", plain(made))


@command(provider, "list")
def list_providers(session: Session) -> None:
    """List the trusted key providers.

    Example: garant trust provider list
    """
    from garant.keyprovider.v1.keyprovider_pb2 import ListProvidersRequest

    keyprovider = session.site().keyprovider()
    providers = keyprovider.call(keyprovider.stub.ListProviders, ListProvidersRequest()).providers
    columns = ("name", "backend", "primary_version")
    session.show_list([plain(found) for found in providers], columns, empty="no trusted key providers")


@command(principal, "register")
def register_principal(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name of the management server, as its configuration has it.")],
    public_key: Annotated[Path, typer.Argument(metavar="FILE", help="Its public key, PEM.")],
) -> None:
    """Believe a management server when it places VMs on hosts.

    Example: garant trust principal register management garant-site/management/principal.pub.pem
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    from garant.keyprovider.v1.keyprovider_pb2 import RegisterPrincipalRequest

    try:
        key = serialization.load_pem_public_key(read_file(public_key))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise BadInput(f"{public_key} holds no public key") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadInput(f"{public_key}: expected a P-256 key")
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    keyprovider = session.site().keyprovider()
    keyprovider.call(keyprovider.stub.RegisterPrincipal, RegisterPrincipalRequest(name=name, public_key=spki))
    session.done(f"management server {name} is registered", {"name": name})
