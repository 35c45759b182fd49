"""Tokens and heartbeats: what a relying party believes, and each thing that it does not."""

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import TokenReason, TokenRejected
from attestation.model import BootIdentity, HostId, HpkeKem
from attestation.token import (
    HEARTBEAT_TYPE,
    MAX_CLOCK_SKEW_SECONDS,
    TOKEN_TYPE,
    HeartbeatClaims,
    TokenClaims,
    issuer_of,
    mint_heartbeat,
    mint_token,
    verify_heartbeat,
    verify_token,
)
from serving.jws import key_id, sign

NOW = 1_700_000_000
KEY, OTHER_KEY = ec.derive_private_key(0x2001, ec.SECP256R1()), ec.derive_private_key(0x2002, ec.SECP256R1())
KEYS = {key_id(KEY.public_key()): KEY.public_key()}
ISSUER, AUDIENCE = issuer_of("site.test"), "key-providers"
CLAIMS = TokenClaims(
    token_id="token-1",
    issuer=ISSUER,
    audience=AUDIENCE,
    host_id=HostId("ab" * 32),
    host_name="host-a",
    cluster="prod",
    issued_at=NOW - 10,
    expires_at=NOW + 290,
    tls_thumbprint=b"t" * 32,
    hpke_kem=HpkeKem.X25519,
    hpke_public_key=bytes(range(32)),
    boot=BootIdentity(4, 2),
    reference="debian-12",
    evidence_digest=b"e" * 32,
    policy_version=7,
    policy_hash=b"p" * 32,
    epoch=5,
)
BEAT = HeartbeatClaims(5, frozenset({HostId("cd" * 32), HostId("01" * 32)}), 7, NOW - 1, NOW + 9)


def payload_of(token: str) -> dict[str, Any]:
    """What a token says, unverified."""
    part = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def refusal(text: str, *, now: int = NOW, issuer: str = ISSUER, audience: str = AUDIENCE) -> TokenReason:
    """Why a token is not believed."""
    with pytest.raises(TokenRejected) as caught:
        verify_token(text, keys=KEYS, issuer=issuer, audience=audience, now=now)
    return caught.value.reason


def beat_refusal(text: str, *, now: int = NOW) -> TokenReason:
    """Why a heartbeat is not believed."""
    with pytest.raises(TokenRejected) as caught:
        verify_heartbeat(text, keys=KEYS, now=now)
    return caught.value.reason


def test_a_token_says_what_was_claimed() -> None:
    """Every claim comes back as it was minted (R-TA-4)."""
    token = verify_token(mint_token(CLAIMS, KEY), keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now=NOW)
    for claim in fields(CLAIMS):
        assert getattr(token, claim.name) == getattr(CLAIMS, claim.name)


def test_a_heartbeat_says_what_was_claimed() -> None:
    """Every claim comes back as it was minted."""
    beat = verify_heartbeat(mint_heartbeat(BEAT, KEY), keys=KEYS, now=NOW)
    for claim in fields(BEAT):
        assert getattr(beat, claim.name) == getattr(BEAT, claim.name)


def test_only_the_pinned_key_signs() -> None:
    """A token or heartbeat by anybody else is refused."""
    assert refusal(mint_token(CLAIMS, OTHER_KEY)) is TokenReason.BAD_SIGNATURE
    assert beat_refusal(mint_heartbeat(BEAT, OTHER_KEY)) is TokenReason.BAD_SIGNATURE


def test_tokens_and_heartbeats_are_not_interchangeable() -> None:
    """The type is part of what is signed."""
    assert refusal(sign(payload_of(mint_token(CLAIMS, KEY)), key=KEY, typ=HEARTBEAT_TYPE)) is TokenReason.BAD_SIGNATURE
    assert beat_refusal(sign(payload_of(mint_heartbeat(BEAT, KEY)), key=KEY, typ=TOKEN_TYPE)) is (
        TokenReason.BAD_SIGNATURE
    )


@pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "e30.e30.", "\ud800"])
def test_what_is_no_token_is_refused(text: str) -> None:
    """Junk is refused and never crashes."""
    assert refusal(text) is TokenReason.BAD_SIGNATURE
    assert beat_refusal(text) is TokenReason.BAD_SIGNATURE


def test_a_token_is_for_its_audience_and_of_its_issuer() -> None:
    """A token for other relying parties, or of another site, is refused."""
    token = mint_token(CLAIMS, KEY)
    assert refusal(token, audience="elsewhere") is TokenReason.WRONG_AUDIENCE
    assert refusal(token, issuer=issuer_of("other.test")) is TokenReason.WRONG_ISSUER


def test_a_token_ends() -> None:
    """It counts until the second before it expires, and not a second longer."""
    token = mint_token(CLAIMS, KEY)
    verify_token(token, keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now=CLAIMS.expires_at - 1)
    assert refusal(token, now=CLAIMS.expires_at) is TokenReason.EXPIRED
    assert beat_refusal(mint_heartbeat(BEAT, KEY), now=BEAT.expires_at) is TokenReason.EXPIRED


def test_a_token_of_the_future_is_refused() -> None:
    """Clocks may differ by half a minute, and by no more."""
    at_the_edge = CLAIMS.issued_at - MAX_CLOCK_SKEW_SECONDS
    verify_token(mint_token(CLAIMS, KEY), keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now=at_the_edge)
    assert refusal(mint_token(CLAIMS, KEY), now=at_the_edge - 1) is TokenReason.NOT_YET_VALID
    early = BEAT.issued_at - MAX_CLOCK_SKEW_SECONDS - 1
    assert beat_refusal(mint_heartbeat(BEAT, KEY), now=early) is TokenReason.NOT_YET_VALID


@pytest.mark.parametrize("claim", sorted(payload_of(mint_token(CLAIMS, KEY)).keys() - {"ear.verifier-id"}))
@pytest.mark.parametrize("value", [None, -1, True, [], {}])
def test_each_claim_is_needed(claim: str, value: object) -> None:
    """Without any one of them, or with one of another type, a token is refused and never crashes."""
    payload = payload_of(mint_token(CLAIMS, KEY))
    del payload[claim]
    assert refusal(sign(payload, key=KEY, typ=TOKEN_TYPE)) is TokenReason.MISSING_CLAIM
    changed = {**payload, claim: value}
    with pytest.raises(TokenRejected):
        verify_token(sign(changed, key=KEY, typ=TOKEN_TYPE), keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now=NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p["submods"]["host"].update({"ear.status": 32}),
        lambda p: p["submods"]["host"].update({"ear.status": 96}),
        lambda p: p["submods"]["host"].update({"ear.status": "2"}),
        lambda p: p.update(eat_profile="tag:example.org,2023:other"),
    ],
    ids=["warning", "contraindicated", "text", "profile"],
)
def test_only_an_affirming_ear_counts(change: Callable[[dict[str, Any]], None]) -> None:
    """A result of another tier or profile is refused, however well signed."""
    payload = payload_of(mint_token(CLAIMS, KEY))
    change(payload)
    assert refusal(sign(payload, key=KEY, typ=TOKEN_TYPE)) is TokenReason.NOT_AFFIRMING


@pytest.mark.parametrize("claim", ["epoch", "revoked", "policy_version", "iat", "exp"])
def test_each_claim_of_a_heartbeat_is_needed(claim: str) -> None:
    """Without any one of them it is refused: nobody is trusted because a list is missing."""
    payload = payload_of(mint_heartbeat(BEAT, KEY))
    del payload[claim]
    assert beat_refusal(sign(payload, key=KEY, typ=HEARTBEAT_TYPE)) is TokenReason.MISSING_CLAIM


@pytest.mark.parametrize("revoked", [["a" * 63], [1], [None], 5, {"a": 1}])
def test_a_malformed_revoked_set_is_refused(revoked: object) -> None:
    """An entry that is no host id is not passed over."""
    payload = {**payload_of(mint_heartbeat(BEAT, KEY)), "revoked": revoked}
    assert beat_refusal(sign(payload, key=KEY, typ=HEARTBEAT_TYPE)) is TokenReason.MISSING_CLAIM


def test_thumbprints_have_32_bytes() -> None:
    """A token bound to a part of a key's thumbprint is refused."""
    token = mint_token(replace(CLAIMS, tls_thumbprint=b"t" * 31), KEY)
    assert refusal(token) is TokenReason.MISSING_CLAIM


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(payload_of(mint_token(CLAIMS, KEY)))), _JSON)
def test_signed_junk_is_refused_or_read(claim: str, value: object) -> None:
    """Whatever a well-signed claim holds, only ``TokenRejected`` comes out (T15)."""
    payload = {**payload_of(mint_token(CLAIMS, KEY)), claim: value}
    with contextlib.suppress(TokenRejected):
        verify_token(sign(payload, key=KEY, typ=TOKEN_TYPE), keys=KEYS, issuer=ISSUER, audience=AUDIENCE, now=NOW)
