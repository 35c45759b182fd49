"""Claims of the demo: each is stated, tried, and shown with what was seen. One that fails ends the story."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class ClaimFailed(Exception):
    """Something that the demo claims was not seen. The message says what was seen instead."""


@dataclass
class Ledger:
    """Claims made so far, printed as they come."""

    console: Console
    between: Callable[[], None]
    """Called before each claim; may raise to end the story."""
    failed: int = 0
    _rows: list[tuple[str, str, str, float]] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """Begin a part of the story."""
        self.console.print(f"\n[bold]{escape(title)}[/bold]")

    def claim(self, text: str, show: Callable[[], str]) -> None:
        """State a claim and show it.

        Args:
            text: What is claimed.
            show: Does what shows it, and returns what was seen.

        Raises:
            ClaimFailed: As raised by ``show``; recorded first.
        """
        self.between()
        started = time.monotonic()
        with self.console.status(escape(text)):
            try:
                seen = show()
            except ClaimFailed as exc:
                self.failed += 1
                self._print(text, str(exc), passed=False, seconds=time.monotonic() - started)
                raise
        self._print(text, seen, passed=True, seconds=time.monotonic() - started)

    def _print(self, text: str, seen: str, *, passed: bool, seconds: float) -> None:
        self._rows.append((text, seen, "yes" if passed else "NO", seconds))
        table = Table(show_header=False, box=None, padding=(0, 1), expand=True)
        table.add_column(width=2)
        table.add_column(ratio=5)
        table.add_column(ratio=7)
        table.add_column(width=7, justify="right")
        mark = "[green]✓[/green]" if passed else "[red]✗[/red]"
        colour = "dim" if passed else "red"
        table.add_row(mark, escape(text), f"[{colour}]{escape(seen)}[/{colour}]", f"[dim]{seconds:.1f} s[/dim]")
        self.console.print(table)

    @property
    def count(self) -> int:
        """How many claims were made."""
        return len(self._rows)
