"""``garant demo``: checks what it needs, tells the story, leaves nothing running.

Exit codes: 0 all claims shown, 1 a claim failed, 2 something is missing or wrong (one line says what), 130 interrupted.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from attestation.errors import AttestationError
from cli.demo.claims import ClaimFailed, Ledger
from cli.demo.interruption import Interruption
from cli.demo.preflight import check_machine, check_space, choose_ports, claim_directory
from cli.demo.processes import become_subreaper, stop_all_descendants
from host_agent.errors import HostAgentError
from keyprovider.errors import KeyProviderError
from serving.errors import RemoteError, ServingError
from swtpm.errors import SwtpmError

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
    interruption = Interruption()
    become_subreaper()
    try:
        return _run(console, Ledger(console, interruption.check), directory, disk, base_port, keep_running)
    except KeyboardInterrupt:
        return _interrupted()
    except (ServingError, SwtpmError, AttestationError, HostAgentError, KeyProviderError, OSError) as exc:
        if interruption.happened:  # whatever was being done failed because of it
            return _interrupted()
        print(f"garant demo: {exc}", file=sys.stderr)
        return 1 if isinstance(exc, RemoteError) else 2
    finally:
        interruption.ignore()
        stop_all_descendants()


def _interrupted() -> int:
    print("garant demo: interrupted; everything it started is stopped", file=sys.stderr)
    return 130


def _run(
    console: Console, ledger: Ledger, directory: Path, disk: Path | None, base_port: int, keep_running: bool
) -> int:
    # Heavy imports come after the argument checks of the command line.
    from cli.demo.parts import load_parts
    from host_agent.vm.disk import inspect_image

    check_machine()
    with claim_directory(directory):
        ports = choose_ports(_PORTS, base_port)
        console.print(f"[bold]Garant demo[/bold]: everything it makes is in {directory}")
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
