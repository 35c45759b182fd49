"""``garant provider``: key providers of the management server."""

from typing import Annotated

import typer

from cli.output import plain
from cli.session import Session, command

app = typer.Typer(no_args_is_help=True)


@command(app, "list")
def list_providers(session: Session) -> None:
    """List the key providers.

    Example: garant provider list
    """
    from garant.management.v1.management_pb2 import ListProvidersRequest

    management = session.site().management()
    providers = management.call(management.stub.ListProviders, ListProvidersRequest()).providers
    session.show_list(
        [plain(provider) for provider in providers],
        ("name", "kind", "default"),
        empty="no key providers; register one with `garant provider register`",
    )


@command(app, "register")
def register(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name that the trust authority published.")],
    default: Annotated[bool, typer.Option("--default", help="Use it where none is named.")] = False,
) -> None:
    """Register a trusted key provider; the first one becomes the default one.

    Example: garant provider register trusted --default
    """
    from garant.management.v1.management_pb2 import RegisterProviderRequest

    management = session.site().management()
    request = RegisterProviderRequest(name=name, default=default)
    provider = management.call(management.stub.RegisterProvider, request).provider
    suffix = ", the default one" if provider.default else ""
    session.done(f"key provider {provider.name} is registered{suffix}", plain(provider))
