"""One run of a ``garant`` command that talks to a site: which site, how to print, and the options that say so.

``--site``, ``--output`` and ``--debug`` may stand before or after the command's name: each command takes them.
"""

import contextvars
import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from cli.output import OutputFormat, Plain, print_json, print_record, print_table

if TYPE_CHECKING:
    from cli.connection import Site

DEFAULT_SITE = "garant-site"
Parameters = ParamSpec("Parameters")

SiteOption = Annotated[
    Path | None,
    typer.Option("--site", metavar="DIR", help=f"The site's directory (default: $GARANT_SITE, else ./{DEFAULT_SITE})"),
]
OutputOption = Annotated[
    OutputFormat | None, typer.Option("--output", "-o", help="How to print results (default: table)")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]


@dataclass(frozen=True, slots=True)
class Session:
    """What the common options say."""

    directory: Path
    output: OutputFormat
    debug: bool

    def site(self) -> "Site":
        """The site that the command is for.

        Raises:
            BadInput: Its directory describes no site.
        """
        from cli.connection import Site

        return Site.load(self.directory)

    def show_list(self, rows: Sequence[Mapping[str, Plain]], columns: Sequence[str], *, empty: str) -> None:
        """Print several things: a table of ``columns``, or JSON with all there is."""
        if self.output is OutputFormat.JSON:
            print_json(rows)
        else:
            print_table(columns, rows, empty=empty)

    def show(self, record: Mapping[str, Plain]) -> None:
        """Print one thing."""
        if self.output is OutputFormat.JSON:
            print_json(record)
        else:
            print_record(record)

    def done(self, message: str, record: Mapping[str, Plain] | None = None) -> None:
        """Say that something was done; programs get the ``record`` of it."""
        if self.output is OutputFormat.JSON:
            print_json(record or {})
        else:
            typer.echo(message)


_session: contextvars.ContextVar[Session | None] = contextvars.ContextVar("session", default=None)


def current_session() -> Session:
    """The session as the options so far say."""
    session = _session.get()
    if session is None:
        session = Session(Path(os.environ.get("GARANT_SITE") or DEFAULT_SITE), OutputFormat.TABLE, debug=False)
    return session


def reset_session() -> None:
    """Forget the options of an earlier run in this process."""
    _session.set(None)


def apply_options(site: Path | None, output: OutputFormat | None, debug: bool) -> Session:
    """Take options that were given into the session."""
    session = current_session()
    session = replace(
        session, directory=site or session.directory, output=output or session.output, debug=debug or session.debug
    )
    _session.set(session)
    return session


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, Parameters], None]], Callable[..., None]]:
    """Register a function as command ``name`` of ``app``, with the common options beside its own.

    The function's first parameter gets the session.
    """

    def register(function: Callable[Concatenate[Session, Parameters], None]) -> Callable[..., None]:
        own = inspect.signature(function)
        common = [
            inspect.Parameter("site", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=SiteOption),
            inspect.Parameter("output", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OutputOption),
            inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption),
        ]
        arguments = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in list(own.parameters.values())[1:]
        ]

        @functools.wraps(function)
        def run(*, site: Path | None, output: OutputFormat | None, debug: bool, **own_arguments: Any) -> None:
            function(apply_options(site, output, debug), **own_arguments)  # type: ignore[call-arg]

        run.__signature__ = own.replace(parameters=[*arguments, *common])  # type: ignore[attr-defined]
        return app.command(name)(run)

    return register
