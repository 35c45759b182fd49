"""What the mutation check disables."""

import ast

from keyprovider.errors import ReleaseReason
from tests.mutants.__main__ import EQUIVALENT, ROOT, all_sites
from tests.mutants.sites import find_sites

MODULE = """
def check(value: int) -> None:
    if value:
        raise EvidenceRejected(
            RejectReason.BAD_MAGIC, "no"
        )
    _check_more(value)
    _refuse(ReleaseReason.HOST_REVOKED, "no")
    raise _mismatch("no")


def _refuse(reason: str, message: str) -> NoReturn:
    raise ValueError(message)


def _mismatch(message: str) -> EvidenceRejected:
    return EvidenceRejected(RejectReason.BAD_MAGIC, message)
"""


def test_each_kind_of_check_is_found() -> None:
    """Raises, calls that never return, calls of checks, and raises of what a function makes."""
    sites = find_sites("module.py", MODULE)
    assert [site.reason for site in sites] == ["BAD_MAGIC", "_check_more", "HOST_REVOKED", "_mismatch"]
    assert {site.function for site in sites} == {"check"}


def test_a_disabled_check_is_gone_and_nothing_else() -> None:
    """The statement becomes ``pass``; every line keeps its number."""
    first = find_sites("module.py", MODULE)[0]
    disabled = first.disabled(MODULE)
    assert len(disabled.splitlines()) == len(MODULE.splitlines())
    assert len(find_sites("module.py", disabled)) == 3
    before = {site.line for site in find_sites("module.py", MODULE)[1:]}
    assert {site.line for site in find_sites("module.py", disabled)} == before


def test_each_rule_of_a_release_is_disabled() -> None:
    """The decision to release a key has a check for each of its reasons, and each is looked at."""
    reasons = {site.reason for site in all_sites() if site.path == "keyprovider/trusted/release.py"}
    assert {reason.name for reason in ReleaseReason} <= reasons


def test_every_mutant_is_a_program() -> None:
    """Whatever is disabled, the module still parses."""
    for site in all_sites():
        ast.parse(site.disabled((ROOT / site.path).read_text()))


def test_superfluous_checks_are_there() -> None:
    """Nothing is excused that does not exist."""
    for path, words in EQUIVALENT:
        assert sum(site.path == path and words in site.text for site in all_sites()) == 1, words
