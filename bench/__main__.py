"""``make bench``: takes every figure, prints the table, writes ``bench/results.json``.

python -m bench            all figures
python -m bench release    only the parts named
"""

import importlib
import json
import logging
import sys
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from bench.figures import Figure, machine

PARTS = ("appraisal", "attest", "release", "vtpm", "disk", "kmip")
RESULTS = Path(__file__).parent / "results.json"


def main(names: list[str]) -> int:
    """Measure, print, write. Returns 2 for an unknown part."""
    unknown = sorted(set(names) - set(PARTS))
    if unknown:
        print(f"unknown: {', '.join(unknown)}; there are: {', '.join(PARTS)}", file=sys.stderr)
        return 2
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    console = Console(width=None if sys.stdout.isatty() else 160)
    figures: list[Figure] = []
    for name in names or PARTS:
        with console.status(f"measuring {name}"):
            figures += importlib.import_module(f"bench.{name}").measure()
    console.print(_table(figures))
    if not names:
        RESULTS.write_text(json.dumps([figure.as_json() | machine() for figure in figures], indent=2) + "\n")
        console.print(
            f"written to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}"
        )
    return 0


def _table(figures: list[Figure]) -> Table:
    table = Table("figure", "value", "unit", "floor in the same run", "floor value", "ratio", "reach", "reached")
    marks = {True: "[green]yes[/green]", False: "[red]no[/red]", None: "-"}
    for figure in figures:
        floor = "" if figure.floor_value is None else f"{figure.floor_value:,.4g}"
        ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
        cells = (figure.name, f"{figure.value:,.4g}", figure.unit, figure.floor, floor, ratio, figure.reach)
        table.add_row(*cells, marks[figure.reached])
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
