"""Appraisal policies as documents."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import PolicyRejected
from attestation.model import LogKind, PcrBank
from attestation.verifier.policy import (
    DEFAULT_PCRS,
    MAX_POLICY_SIZE,
    AppraisalPolicy,
    canonical_hash,
    canonical_json,
    parse_policy,
    policy_schema,
)
from attestation.verifier.quirks import Quirk

SCHEMA = Path(__file__).parents[2] / "docs" / "policy.schema.json"
WRITE_SCHEMA = (
    'python -c "from attestation.verifier.policy import policy_schema; print(policy_schema(), end=str())"'
    " > docs/policy.schema.json"
)
MINIMAL = '{"name": "fleet", "version": 1}'


def with_field(text: str) -> str:
    """The least policy, and one field more."""
    return f"{MINIMAL[:-1]}, {text}}}"


def test_the_least_policy_is_the_strict_one() -> None:
    """Every option that is not written has its safe value."""
    policy = parse_policy(MINIMAL)
    assert (policy.bank, policy.pcrs) == (PcrBank.SHA256, DEFAULT_PCRS)
    assert policy.quirks == ()
    assert not policy.restart_count_allowed
    assert policy.denied_firmware_versions == frozenset()


def test_a_full_policy_is_read() -> None:
    """Every field can be written."""
    policy = parse_policy(
        json.dumps(
            {
                "name": "fleet-1.a_B",
                "version": 7,
                "bank": "sha384",
                "pcrs": [7, 0, 4],
                "secure_boot": {"required": True},
                "required_startup_locality": 3,
                "denied_firmware": ["2019102300163636", "0000000000000001"],
                "quirks": ["old-shim-authority"],
                "restart_count_allowed": True,
                "safe_clock_required": True,
                "systemd_log": True,
            }
        )
    )
    assert policy.pcrs == (0, 4, 7)
    assert policy.denied_firmware_versions == {1, 0x2019102300163636}
    assert policy.quirks == (Quirk.OLD_SHIM_AUTHORITY,)
    assert policy.secure_boot.required
    assert policy.logs == (LogKind.TCG, LogKind.SYSTEMD)


def test_a_policy_of_measured_files_is_read() -> None:
    """PCR 10 is explained by the list of files and is no part of the boot; the list is demanded by default."""
    policy = parse_policy(with_field('"pcrs": [0, 4, 7, 10], "ima": {"excluded": ["/var/**"]}'))
    assert (policy.pcrs, policy.boot_pcrs) == ((0, 4, 7, 10), (0, 4, 7))
    assert policy.logs == (LogKind.TCG, LogKind.IMA)
    assert policy.ima is not None
    assert policy.ima.required


REFUSED = [
    ("", "Invalid JSON"),
    ("[]", "an object"),
    ("{}", "name"),
    ('{"name": "fleet"}', "version"),
    ('{"name": "fleet", "version": 0}', "version"),
    ('{"name": "fleet", "version": "1"}', "version"),
    ('{"name": "fleet", "version": true}', "version"),
    ('{"name": "fleet", "version": 1.5}', "version"),
    ('{"name": "", "version": 1}', "name"),
    ('{"name": "a b", "version": 1}', "name"),
    (f'{{"name": "{"a" * 65}", "version": 1}}', "name"),
    ('{"name": "fleet", "version": 1, "version": 2}', "version: the key is there twice"),
    (with_field('"colour": 1'), "colour"),
    (with_field('"secure_boot": {"needed": true}'), "secure_boot.needed"),
    (with_field('"secure_boot": {"required": "yes"}'), "secure_boot.required"),
    (with_field('"bank": "sha1"'), "bank"),
    (with_field('"pcrs": []'), "pcrs"),
    (with_field('"pcrs": [16]'), "pcrs"),
    (with_field('"pcrs": [-1]'), "pcrs"),
    (with_field('"pcrs": [0, 0]'), "twice"),
    (with_field('"pcrs": [0, 4], "secure_boot": {"required": true}'), "needs PCR 7"),
    (with_field('"pcrs": [7], "required_startup_locality": 3'), "needs PCR 0"),
    (with_field('"ima": {}'), "ima needs PCR 10"),
    (with_field('"ima": {"required": false}'), "ima needs PCR 10"),
    (with_field('"ima": {}, "pcrs": [10]'), "nothing of what booted"),
    (with_field('"ima": {"exclude": []}, "pcrs": [0, 10]'), "ima.exclude"),
    (with_field('"systemd_log": "yes"'), "systemd_log"),
    (with_field('"required_startup_locality": 1'), "required_startup_locality"),
    (with_field('"quirks": ["be-kind"]'), "quirks"),
    (with_field('"denied_firmware": ["1"]'), "denied_firmware"),
    (with_field('"restart_count_allowed": 1'), "restart_count_allowed"),
    (" " * (MAX_POLICY_SIZE + 1), "at most"),
    ("[" * 50_000, "Invalid JSON"),
]


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=range(len(REFUSED)))
def test_a_policy_that_says_something_else_is_refused_in_one_line(text: str, reason: str) -> None:
    """Unknown fields, values and names, and repeated keys, are refused; the line names the field."""
    with pytest.raises(PolicyRejected, match=reason) as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


def test_equal_policies_have_one_hash() -> None:
    """Order and white space do not matter, and what is not written counts as its default."""
    one = parse_policy('{"name":"fleet","version":1,"pcrs":[7,4],"quirks":[]}')
    other = parse_policy('{ "pcrs": [4, 7], "version": 1, "name": "fleet" }')
    assert canonical_hash(one) == canonical_hash(other)
    assert canonical_hash(one) != canonical_hash(parse_policy('{"name":"fleet","version":2,"pcrs":[4,7]}'))
    assert canonical_hash(one) == hashlib.sha256(canonical_json(one).encode()).digest()
    assert parse_policy(canonical_json(one)) == one


def test_the_canonical_form_is_pinned() -> None:
    """The text that the hash covers does not change by accident."""
    assert canonical_json(parse_policy(MINIMAL)) == (
        '{"bank":"sha256","denied_firmware":[],"ima":null,"name":"fleet","pcrs":[0,2,4,7,9,11],"quirks":[],'
        '"required_startup_locality":null,"restart_count_allowed":false,"safe_clock_required":false,'
        '"secure_boot":{"required":false},"systemd_log":false,"version":1}'
    )


def test_a_policy_cannot_be_changed() -> None:
    """What was parsed and hashed stays what it is."""
    with pytest.raises(ValueError, match="frozen"):
        parse_policy(MINIMAL).version = 2


def test_the_published_schema_is_the_models() -> None:
    """docs/policy.schema.json is what the model says."""
    assert SCHEMA.read_text() == policy_schema(), f"write it anew: {WRITE_SCHEMA}"
    assert json.loads(policy_schema())["additionalProperties"] is False


@settings(deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_refused_or_a_policy(text: str) -> None:
    """Nothing but PolicyRejected escapes."""
    with contextlib.suppress(PolicyRejected):
        assert isinstance(parse_policy(text), AppraisalPolicy)
