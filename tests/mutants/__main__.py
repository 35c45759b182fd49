"""``make mutants``: disable each check of the trust authority in turn; a test must turn red.

Works on a copy of the tree. Prints a table of every check and the test that noticed; exits with 1 if one survived.
``python -m tests.mutants WORD`` looks only at checks whose module, function or reason holds the word.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from attestation.simulator.attacks.catalogue import CATALOGUE
from tests.mutants.sites import Site, find_sites

Result = TypeVar("Result")
ROOT = Path(__file__).parents[2]
WORKERS = 2
_TREE = (
    "attestation",
    "keyprovider",
    "host_agent",
    "management",
    "swtpm",
    "serving",
    "proto",
    "tests",
    "pyproject.toml",
)
_ATTACKS = "tests/integration/test_attacks.py"
_RACES = "tests/integration/test_attestation_races.py"
_MODEL = "tests/integration/test_admission_model.py"
_SERVICE = (
    "tests/integration/test_service_bounds.py",
    "tests/integration/test_attestation_enrolment.py",
    "tests/integration/test_attestation_service.py",
)
_FURTHER_EXCEPTIONS = {"attestation/verifier/endorsement.py": frozenset({"ValueError"})}
"""Where other exceptions refuse, too: what the certificate verifier's callbacks raise."""
_TESTS = {
    "attestation/token.py": ("tests/unit/test_token.py",),
    "keyprovider/trusted/release.py": ("tests/unit/test_keyprovider_release.py",),
    "attestation/verifier/ima.py": ("tests/unit/test_verifier_ima.py",),
    "attestation/verifier/store.py": ("tests/contract/test_attestation_store.py",),
}
_ATTACKS_BY_REASON: dict[str, list[str]] = defaultdict(list)
for _attack in CATALOGUE:
    _ATTACKS_BY_REASON[_attack.expected.value].append(_attack.name)
EQUIVALENT = {
    ("attestation/verifier/attest.py", "it was used before; ask anew"): (
        "the store refuses a spent cookie by its unique insert; this saves the appraisal"
    ),
    ("attestation/verifier/endorsement.py", "an endorsement key certificate names its TPM"): (
        "the policy requires the extension, and the names were read before the path was built"
    ),
    ("attestation/verifier/endorsement.py", "the endorsement key is neither RSA nor ECC"): (
        "the parser of public areas makes no other keys; this tells the type checker"
    ),
}
"""Checks that another, tested one makes superfluous, by module and words of theirs; and why they are there."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one mutant."""

    site: Site
    killer: str
    """The test that noticed; empty where none did."""


def modules() -> list[str]:
    """Where the trust authority decides."""
    verifier = sorted((ROOT / "attestation/verifier").glob("*.py"))
    return [
        *(str(path.relative_to(ROOT)) for path in verifier),
        "attestation/token.py",
        "keyprovider/trusted/release.py",
    ]


def all_sites() -> list[Site]:
    """Every check."""
    return [
        site
        for path in modules()
        for site in find_sites(path, (ROOT / path).read_text(), also=_FURTHER_EXCEPTIONS.get(path, frozenset()))
    ]


def tests_of(site: Site) -> tuple[tuple[str, ...], ...]:
    """Tests to run for a mutant, the quick ones first; the next are run only if it survived."""
    if not site.path.startswith("attestation/verifier"):
        return (_TESTS[site.path],)
    unit = (f"tests/unit/test_verifier_{Path(site.path).stem}.py", *_TESTS.get(site.path, ()))
    steps = [tuple(dict.fromkeys(test for test in unit if (ROOT / test).exists()))]
    # The liars that this very check should refuse come before all others.
    steps.append(
        tuple(f"{_ATTACKS}::test_attack_is_refused[{name}]" for name in _ATTACKS_BY_REASON.get(site.reason, ()))
    )
    return tuple(step for step in (*steps, (_SERVICE[0],), (_RACES,), (_ATTACKS,), (_MODEL,), _SERVICE[1:]) if step)


def _copy_tree(target: Path) -> None:
    for name in _TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns(".hypothesis"))
        else:
            shutil.copy2(source, target / name)


class Runner:
    """A copy of the tree, and a process that runs tests in it."""

    def __init__(self, tree: Path) -> None:
        """Copy the tree to ``tree``."""
        self.tree = tree
        _copy_tree(tree)
        environment = {**os.environ, "PYTHONPATH": f"{tree}:{tree / 'proto'}", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.runner"],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def first_failure(self, tests: tuple[str, ...]) -> str:
        """The first of the tests that fails in the tree as it is; empty if none does."""
        process = self._process
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the process has no pipes")
        process.stdin.write(" ".join(tests) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise SystemExit("the process that runs the tests ended")
        return answer.strip()

    def judge(self, site: Site, moment: int) -> Verdict:
        """Disable one check, run its tests, and put the module back."""
        path = self.tree / site.path
        original, status = path.read_text(), path.stat()
        path.write_text(site.disabled(original))
        # Each mutant has a time of its own, so that no compiled form of another is taken for it.
        os.utime(path, (moment, moment))
        try:
            return Verdict(site, next(filter(None, map(self.first_failure, tests_of(site))), ""))
        finally:
            path.write_text(original)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


def main(word: str = "") -> int:
    """Run the mutants; 0 if none survived."""
    started = time.monotonic()
    sites = [site for site in all_sites() if word in f"{site.path} {site.function} {site.reason}"]
    skipped = [site for site in sites if any(site.path == path and words in site.text for path, words in EQUIVALENT)]
    sites = [site for site in sites if site not in skipped]
    with (
        tempfile.TemporaryDirectory(prefix="garant-mutants-") as directory,
        ThreadPoolExecutor(WORKERS) as pool,
        ExitStack() as stack,
    ):
        idle: SimpleQueue[Runner] = SimpleQueue()
        for number in range(WORKERS):
            runner = Runner(Path(directory) / str(number))
            stack.callback(runner.close)
            idle.put(runner)
        unchanged = tuple(
            sorted({test.partition("::")[0] for site in sites for step in tests_of(site) for test in step})
        )
        green = pool.map(lambda test: _with_a_runner(idle, lambda runner: runner.first_failure((test,))), unchanged)
        red = [failed for failed in green if failed]
        if red:
            sys.stdout.write(f"red before anything was changed: {', '.join(red)}\n")
            return 2
        judged = pool.map(
            lambda numbered: _with_a_runner(idle, lambda runner: runner.judge(numbered[1], numbered[0])),
            enumerate(sites, start=1),
        )
        verdicts = list(judged)
    return _report(verdicts, len(skipped), time.monotonic() - started)


def _with_a_runner(idle: "SimpleQueue[Runner]", work: Callable[[Runner], Result]) -> Result:
    runner = idle.get()
    try:
        return work(runner)
    finally:
        idle.put(runner)


def _report(verdicts: list[Verdict], skipped: int, seconds: float) -> int:
    survivors = [verdict for verdict in verdicts if not verdict.killer]
    for verdict in verdicts:
        site = verdict.site
        place = f"{site.path}:{site.line}"
        sys.stdout.write(f"{place:45} {site.reason:32} {verdict.killer or 'SURVIVED'}\n")
    sys.stdout.write(
        f"{len(verdicts)} checks disabled, {len(survivors)} survived, {skipped} superfluous, in {seconds:.0f} s\n"
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
