"""``garant demo``: checks what it needs, tells the story, leaves nothing running.

Exit codes: 0 all claims shown, 1 a claim failed, 2 something is missing or wrong (one line says what), 130 interrupted.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from cli.demo.claims import ClaimFailed, Ledger
from cli.demo.preflight import check_machine, check_space, choose_ports, claim_directory
from cli.demo.processes import become_subreaper, stop_all_descendants
from serving.errors import RemoteError, ServingError

_PORTS = 8
_DIRECTORY = Path(f"/var/tmp/garant-demo-{os.getuid()}")  # noqa: S108 - checked to be ours, and to be mode 0700
"""Short, since socket paths are; on disk, since images are large."""


def demo_command(
    disk: Annotated[
        Path | None, typer.Option(help="Disk image to encrypt and boot with, qcow2 or raw; only read.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where everything is made.")] = _DIRECTORY,
    base_port: Annotated[int, typer.Option(help="First of eight ports to use; 0: any that are free.")] = 0,
    keep_running: Annotated[bool, typer.Option(help="Leave everything running until Ctrl-C.")] = False,
) -> None:
    """Tell the main story on real parts, on this machine alone.

    Example: garant demo --disk debian-12-generic-amd64.qcow2
    """
    raise typer.Exit(run_demo(directory, disk, base_port, keep_running))


def run_demo(directory: Path, disk: Path | None, base_port: int, keep_running: bool) -> int:
    """Run the demo; see the module for exit codes."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    become_subreaper()
    try:
        return _run(console, directory, disk, base_port, keep_running)
    except KeyboardInterrupt:
        print("garant demo: interrupted; everything it started is stopped", file=sys.stderr)
        return 130
    except (ServingError, OSError) as exc:
        print(f"garant demo: {exc}", file=sys.stderr)
        return 1 if isinstance(exc, RemoteError) else 2
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stop_all_descendants()


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(console: Console, directory: Path, disk: Path | None, base_port: int, keep_running: bool) -> int:
    # Heavy imports come after the argument checks of the command line.
    from cli.demo.parts import load_parts
    from host_agent.vm.disk import inspect_image

    check_machine()
    with claim_directory(directory):
        ports = choose_ports(_PORTS, base_port)
        console.print(f"[bold]Garant demo[/bold]: everything it makes is in {directory}")
        ledger = Ledger(console)
        with console.status("preparing the disk image and the guest"):
            parts = load_parts(directory, disk)
        check_space(directory, inspect_image(parts.image.path).copy_size)
        story = parts.story(directory, ports, ledger)
        try:
            story.tell()
        except ClaimFailed:
            console.print(f"\n[red]A claim failed.[/red] Logs: {directory / 'logs'}")
            return 1
        _farewell(console, directory, ledger)
        if keep_running:
            console.print("Running until Ctrl-C.")
            signal.pause()
    return 0


def _farewell(console: Console, directory: Path, ledger: Ledger) -> None:
    site = directory / "site"
    console.print(f"\n[green]All {ledger.count} claims shown.[/green] Site: {site}, logs: {directory / 'logs'}")
    console.print("To try next:")
    for command, why in (
        (f"garant inspect event-log {directory / 'machines/a/event-log'}", "what host a booted, event by event"),
        ("garant demo --keep-running", "leave it running, then look around from another terminal:"),
        (f"garant --site {site} trust host show b", "why host b is not trusted"),
    ):
        console.print(f"  [bold].venv/bin/{command}[/bold]   [dim]{why}[/dim]", soft_wrap=True)
