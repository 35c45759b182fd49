"""The release decision: every rule has a request that fails by it alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from attestation.model import BootIdentity, HostId, HpkeKem
from attestation.token import VerifiedHeartbeat, VerifiedToken
from keyprovider.errors import InvalidArgument, ReleaseReason, ReleaseRefused
from keyprovider.grant import VerifiedGrant
from keyprovider.trusted.model import BackendKind, KeyRequest, Operation, Peer, Provider, ProviderPolicy
from keyprovider.trusted.release import Approved, ReleaseRules, decide

NOW = 1_700_000_000
HOST, OTHER_HOST = HostId("ab" * 32), HostId("cd" * 32)
VM, OTHER_VM = "5f0d8a4e-0a5c-4f6e-8a3b-2f1e0d9c8b7a", "00000000-0a5c-4f6e-8a3b-2f1e0d9c8b7a"
REFERENCE = "0b0e7a5c-3c52-4f0b-9a51-6f2d8f3b1c11"

REQUEST = KeyRequest(Operation.UNWRAP, "gold", VM, "disk/root", REFERENCE, b"wrapped")
PEER = Peer("attested-host", HOST.text, b"t" * 32)
TOKEN = VerifiedToken(
    token_id="token-1",
    issuer="site",
    audience="garant-key-provider",
    host_id=HOST,
    host_name="host-a",
    cluster="prod",
    issued_at=NOW - 10,
    expires_at=NOW + 290,
    tls_thumbprint=b"t" * 32,
    hpke_kem=HpkeKem.X25519,
    hpke_public_key=bytes(32),
    boot=BootIdentity(4, 2),
    reference="debian-12",
    evidence_digest=bytes(32),
    policy_version=7,
    policy_hash=bytes(32),
    epoch=5,
)
GRANT = VerifiedGrant("grant-1", "management", VM, HOST, 1, NOW - 10, NOW + 50)
HEARTBEAT = VerifiedHeartbeat(5, frozenset({OTHER_HOST}), 7, NOW - 1, NOW + 9)
PROVIDER = Provider(
    "gold",
    BackendKind.SOFTWARE,
    1,
    ProviderPolicy(frozenset({"prod"}), frozenset({HOST}), frozenset({HpkeKem.X25519})),
)
RULES = ReleaseRules(max_staleness_seconds=30, minimum_policy_version=3)
GOOD: Mapping[str, Any] = {
    "request": REQUEST,
    "peer": PEER,
    "token": TOKEN,
    "grant": GRANT,
    "heartbeat": HEARTBEAT,
    "provider": PROVIDER,
    "rules": RULES,
    "now": NOW,
}


def _decide(**changes: Any) -> Approved:
    case = {**GOOD, **changes}
    return decide(case.pop("request"), **case)


def test_a_request_that_meets_every_rule_is_approved() -> None:
    """Attested host, fitting grant, admitted by the provider: approved (B-19, R-TA-4)."""
    assert _decide() == Approved(REQUEST, TOKEN, GRANT, PROVIDER, NOW)


REFUSALS: list[tuple[ReleaseReason, dict[str, Any]]] = [
    (ReleaseReason.CALLER_NOT_A_HOST, {"peer": replace(PEER, role="joined-host")}),
    (ReleaseReason.CALLER_NOT_A_HOST, {"peer": replace(PEER, role="management-server")}),
    (ReleaseReason.CERTIFICATE_OF_OTHER_HOST, {"peer": replace(PEER, name=OTHER_HOST.text)}),
    (ReleaseReason.TOKEN_OF_OTHER_KEY, {"peer": replace(PEER, tls_thumbprint=b"u" * 32)}),
    (ReleaseReason.TOKEN_OF_OTHER_KEY, {"peer": replace(PEER, tls_thumbprint=b"")}),
    (ReleaseReason.TOKEN_EXPIRED, {"token": replace(TOKEN, expires_at=NOW)}),
    (ReleaseReason.NO_HEARTBEAT, {"heartbeat": None}),
    (ReleaseReason.HEARTBEAT_STALE, {"heartbeat": replace(HEARTBEAT, issued_at=NOW - 31)}),
    (ReleaseReason.TOKEN_OF_OLDER_EPOCH, {"token": replace(TOKEN, epoch=4)}),
    (ReleaseReason.HOST_REVOKED, {"heartbeat": replace(HEARTBEAT, revoked=frozenset({HOST}))}),
    (ReleaseReason.POLICY_TOO_OLD, {"token": replace(TOKEN, policy_version=6)}),
    (ReleaseReason.POLICY_TOO_OLD, {"rules": replace(RULES, minimum_policy_version=8)}),
    (
        ReleaseReason.POLICY_TOO_OLD,
        {"provider": replace(PROVIDER, policy=replace(PROVIDER.policy, minimum_policy_version=8))},
    ),
    (ReleaseReason.GRANT_EXPIRED, {"grant": replace(GRANT, expires_at=NOW)}),
    (ReleaseReason.GRANT_FOR_OTHER_HOST, {"grant": replace(GRANT, host_id=OTHER_HOST)}),
    (ReleaseReason.GRANT_FOR_OTHER_VM, {"grant": replace(GRANT, vm_id=OTHER_VM)}),
    (ReleaseReason.GRANT_FOR_OTHER_VM, {"request": replace(REQUEST, vm_id=OTHER_VM)}),
    (ReleaseReason.PROVIDER_UNKNOWN, {"provider": None}),
    (ReleaseReason.PROVIDER_UNKNOWN, {"provider": replace(PROVIDER, name="silver")}),
    (ReleaseReason.CLUSTER_NOT_ADMITTED, {"token": replace(TOKEN, cluster="test")}),
    (
        ReleaseReason.HOST_NOT_ADMITTED,
        {"provider": replace(PROVIDER, policy=replace(PROVIDER.policy, hosts=frozenset({OTHER_HOST})))},
    ),
    (ReleaseReason.KEM_NOT_ALLOWED, {"token": replace(TOKEN, hpke_kem=HpkeKem.MLKEM768_X25519)}),
]


@pytest.mark.parametrize(("reason", "changes"), REFUSALS, ids=[reason.value for reason, _ in REFUSALS])
def test_each_rule_refuses_by_itself(reason: ReleaseReason, changes: dict[str, Any]) -> None:
    """One thing wrong, all else right: refused for exactly that reason (B-19, R-TA-4)."""
    with pytest.raises(ReleaseRefused) as refused:
        _decide(**changes)
    assert refused.value.reason is reason


def test_every_reason_has_a_refusal() -> None:
    """No rule is without a negative test."""
    assert {reason for reason, _ in REFUSALS} == set(ReleaseReason)


def test_the_first_rule_that_fails_is_named() -> None:
    """With everything wrong, the caller is told of the caller: the order of checks is part of the interface."""
    order = list(ReleaseReason)
    for count in range(len(order)):
        changes: dict[str, Any] = {}
        for reason, change in REFUSALS:
            if order.index(reason) >= count:
                for name, value in change.items():
                    changes.setdefault(name, value)
        with pytest.raises(ReleaseRefused) as refused:
            _decide(**changes)
        assert order.index(refused.value.reason) >= count


@pytest.mark.parametrize(
    "changes",
    [
        {"heartbeat": replace(HEARTBEAT, issued_at=NOW - 30)},
        {"heartbeat": replace(HEARTBEAT, issued_at=NOW + 5)},
        {"heartbeat": replace(HEARTBEAT, expires_at=NOW - 5)},
        {"token": replace(TOKEN, epoch=6)},
        {"token": replace(TOKEN, expires_at=NOW + 1)},
        {"provider": replace(PROVIDER, policy=ProviderPolicy())},
    ],
    ids=["just-fresh", "clock-behind", "old-but-fresh-enough", "newer-epoch", "last-second", "open-policy"],
)
def test_what_is_just_within_the_rules_is_approved(changes: dict[str, Any]) -> None:
    """The limits themselves are allowed."""
    assert _decide(**changes).request == REQUEST


def test_an_empty_admission_list_admits_nobody() -> None:
    """Nothing listed is nobody, unlike no list at all."""
    for policy, reason in (
        (ProviderPolicy(clusters=frozenset()), ReleaseReason.CLUSTER_NOT_ADMITTED),
        (ProviderPolicy(hosts=frozenset()), ReleaseReason.HOST_NOT_ADMITTED),
        (ProviderPolicy(kems=frozenset()), ReleaseReason.KEM_NOT_ALLOWED),
    ):
        with pytest.raises(ReleaseRefused) as refused:
            _decide(provider=replace(PROVIDER, policy=policy))
        assert refused.value.reason is reason


@pytest.mark.parametrize(
    "changes",
    [
        {"provider": ""},
        {"provider": "Gold"},
        {"provider": "gold\n"},
        {"provider": "a" * 65},
        {"vm_id": ""},
        {"vm_id": VM.upper()},
        {"vm_id": VM.replace("-", "")},
        {"vm_id": "{" + VM + "}"},
        {"component": ""},
        {"component": "disk/"},
        {"component": "disk/" + "a" * 33},
        {"component": "disk/A"},
        {"component": "home\n"},
        {"component": "disk/../home"},
        {"key_reference": ""},
        {"key_reference": "x"},
        {"wrapped_key": b""},
        {"wrapped_key": bytes(513)},
    ],
)
def test_malformed_requests_are_refused(changes: dict[str, Any]) -> None:
    """Names, identifiers and sizes are checked before anything is decided."""
    with pytest.raises(InvalidArgument):
        replace(REQUEST, **changes)
