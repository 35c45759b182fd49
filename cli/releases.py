"""``garant releases``: the release log of the key provider service, as a trust administrator."""

from typing import Annotated

import typer

from cli.output import plain
from cli.session import Session, command

app = typer.Typer(no_args_is_help=True)
_PAGE_SIZE = 1_000


@app.callback()
def _group() -> None:
    """The release log: which host got which key, for which VM, on which evidence."""


@command(app, "list")
def list_releases(
    session: Session,
    start: Annotated[int, typer.Option(min=0, help="First index to list.")] = 0,
) -> None:
    """List releases, oldest first.

    Example: garant releases list --output json
    """
    from garant.keyprovider.v1.keyprovider_pb2 import ListReleasesRequest

    keyprovider = session.site().keyprovider()
    releases, index = [], start
    while True:
        request = ListReleasesRequest(start_index=index, page_size=_PAGE_SIZE)
        page = keyprovider.call(keyprovider.stub.ListReleases, request).releases
        releases += [plain(release) for release in page]
        if len(page) < _PAGE_SIZE:
            break
        index = page[-1].index + 1
    columns = ("index", "released_at", "operation", "provider", "component", "vm_id", "host_id")
    session.show_list(releases, columns, empty="no keys have been released")
