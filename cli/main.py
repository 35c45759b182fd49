"""The ``garant`` command: entry point, top-level help, errors in one line.

Commands are loaded when they are asked for: ``garant --help`` loads none of them.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import typer

from cli.errors import EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_WRONG, CliError, exit_code_of_status
from cli.output import visible
from cli.session import DebugOption, OutputOption, SiteOption, apply_options, current_session, reset_session


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command or group, and where it lies."""

    module: str
    attribute: str
    help: str


_GROUPS = {
    "vm": _Entry("cli.vm", "app", "Virtual machines: make, power, console, delete."),
    "host": _Entry("cli.host", "app", "Hosts as the management server knows them."),
    "provider": _Entry("cli.provider", "app", "Key providers of the management server."),
    "event": _Entry("cli.event", "app", "The management server's event log."),
    "trust": _Entry("cli.trust", "app", "The trust authority: whom and what it trusts."),
    "releases": _Entry("cli.releases", "app", "The release log: which host got which key."),
    "audit": _Entry("cli.audit", "app", "The release log: export it, check it against witnesses."),
    "inspect": _Entry("cli.inspect", "app", "Look into event logs and tokens, offline."),
}
_COMMANDS = {
    "init": _Entry("cli.site", "init_command", "Make a site: authorities, configurations, join tokens."),
    "demo": _Entry("cli.demo.command", "demo_command", "Show the main story on this machine alone."),
}

_OPTIONS_WITH_VALUE = ("--site", "--output", "-o")

_HELP = """\
Hardware-attested key release, VM encryption and virtual TPMs for KVM/QEMU hosts.

\b
Examples:
  garant init garant-site --host kvm1=10.0.0.11
  garant vm create web --disk root=/images/debian.qcow2 --vtpm
  garant trust host show kvm1 --output json

Exit codes: 0 done; 1 refused by a service; 2 wrong arguments or environment; 130 interrupted.
"""


def build_app(arguments: Sequence[str]) -> typer.Typer:
    """The application with the command that ``arguments`` name loaded, and of the rest only name and help."""
    # Plain help texts: drawing boxes would double the time that --help takes.
    app = typer.Typer(
        name="garant",
        help=_HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_common_options)
    wanted = _named_command(arguments)
    for name, entry in _COMMANDS.items():
        if name == wanted:
            app.command(name)(getattr(importlib.import_module(entry.module), entry.attribute))
        else:
            app.command(name, help=entry.help)(_not_loaded)
    for name, entry in _GROUPS.items():
        if name == wanted:
            app.add_typer(getattr(importlib.import_module(entry.module), entry.attribute), name=name, help=entry.help)
        else:
            app.command(name, help=entry.help)(_not_loaded)
    return app


def _named_command(arguments: Sequence[str]) -> str | None:
    """The first argument that is neither an option nor the value of one."""
    remaining = iter(arguments)
    for argument in remaining:
        if argument in _OPTIONS_WITH_VALUE:
            next(remaining, None)
        elif not argument.startswith("-"):
            return argument
    return None


def _not_loaded() -> None:
    """Stands for a command that this run does not name."""
    raise AssertionError("a command that was not named ran")


def _common_options(site: SiteOption = None, output: OutputOption = None, debug: DebugOption = False) -> None:
    apply_options(site, output, debug)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Those of the process by default.

    Returns:
        Exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    reset_session()
    try:
        result = build_app(given)(given, standalone_mode=False, prog_name="garant")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python must not complain about it at its end either.
        sys.stdout = None
        return EXIT_REFUSED
    except Exception as exc:
        return _report(exc)
    return result if isinstance(result, int) else 0


def _report(exc: Exception) -> int:
    """Say in one line what is wrong; an unexpected error is raised again."""
    # Imported here: whoever gets here has loaded it already, but for errors in arguments.
    from serving.errors import RemoteError, ServingError

    if isinstance(exc, typer.TyperException):
        message, code = exc.format_message(), EXIT_WRONG
        if message.startswith("Usage:"):
            print(message, file=sys.stderr)
            return code
    elif isinstance(exc, RemoteError):
        message, code = f"{exc.reason}: {exc.message}", exit_code_of_status(exc.code.name)
    elif isinstance(exc, CliError | ServingError):
        message, code = str(exc), EXIT_WRONG
    else:
        raise exc
    if current_session().debug:
        raise exc
    print(f"garant: {visible(' '.join(message.split()))}", file=sys.stderr)
    return code
