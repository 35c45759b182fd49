"""The repository tests itself: documents name what exists."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_PATH = re.compile(
    r"`((?:attestation|keyprovider|management|host_agent|swtpm|serving|cli|docs|deploy|tests)/[\w./-]*)`"
)


def _documents() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_documents_exist(document: Path) -> None:
    """Every path of the tree that a document names is there."""
    named = _PATH.findall(document.read_text())
    assert [path for path in named if not (ROOT / path).exists() and not (document.parent / path).exists()] == []


@pytest.mark.parametrize("document", _documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_tests_that_documents_name_exist(document: Path) -> None:
    """Every test that a document names is there."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", document.read_text())
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).exists() or f"def {test}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


def test_readme_targets_exist() -> None:
    """Every make target that the README names is a target."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", readme, re.MULTILINE))
    assert named - targets == set()
    assert {"demo", "test"} <= named


def test_readme_fits_a_screen() -> None:
    """The README is at most 70 lines of at most 120 characters."""
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 70
    assert max(map(len, lines)) <= 120


def test_no_absolute_path_of_this_machine() -> None:
    """Nothing committed names the directory that the checkout lies in."""
    found = subprocess.run(["git", "grep", "-nF", f"{ROOT}/"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.stdout == ""
