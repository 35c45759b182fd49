"""``garant event``: the management server's event log."""

from typing import Annotated

import typer

from cli.output import plain
from cli.session import Session, command

app = typer.Typer(no_args_is_help=True)
_PAGE_SIZE = 1_000


@app.callback()
def _group() -> None:
    """The management server's event log."""


@command(app, "list")
def list_events(
    session: Session,
    after: Annotated[int, typer.Option(min=0, help="Only events after this cursor.")] = 0,
) -> None:
    """List events, oldest first.

    Example: garant event list --after 120
    """
    from garant.management.v1.management_pb2 import ListEventsRequest

    management = session.site().management()
    events, cursor = [], after
    while True:
        request = ListEventsRequest(after_cursor=cursor, page_size=_PAGE_SIZE)
        page = management.call(management.stub.ListEvents, request).events
        events += [plain(event) for event in page]
        if len(page) < _PAGE_SIZE:
            break
        cursor = page[-1].cursor
    session.show_list(events, ("cursor", "occurred_at", "type", "principal", "host", "message"), empty="no events")
