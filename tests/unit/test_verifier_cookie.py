"""Cookies: sealed, bound to their purpose, and ended by time."""

import pytest

from attestation.errors import ChallengeReason, ChallengeRejected
from attestation.verifier.cookie import CookieBox, CookiePurpose

KEY = bytes(range(32))
ID = bytes(range(100, 132))
EXPIRY = 1_000_060


def sealed(key: bytes = KEY) -> bytes:
    """A cookie that ends at ``EXPIRY``."""
    return CookieBox(key).seal(CookiePurpose.CHALLENGE, b"state", cookie_id=ID, expires_at=EXPIRY)


def refusal(cookie: bytes, *, now: int = EXPIRY - 1, purpose: CookiePurpose = CookiePurpose.CHALLENGE) -> str:
    """Why a cookie is refused."""
    with pytest.raises(ChallengeRejected) as caught:
        CookieBox(KEY).open(purpose, cookie, now=now)
    return caught.value.reason


def test_a_cookie_opens_for_its_purpose() -> None:
    """What was sealed comes back, with its id and its end."""
    opened = CookieBox(KEY).open(CookiePurpose.CHALLENGE, sealed(), now=EXPIRY - 1)
    assert (opened.cookie_id, opened.expires_at, opened.payload) == (ID, EXPIRY, b"state")


def test_the_payload_cannot_be_read() -> None:
    """The host that carries a cookie learns nothing of its content."""
    assert b"state" not in sealed()


def test_a_changed_cookie_is_refused() -> None:
    """Every byte counts: version, id, ciphertext and tag."""
    cookie = sealed()
    for position in range(len(cookie)):
        changed = cookie[:position] + bytes([cookie[position] ^ 1]) + cookie[position + 1 :]
        assert refusal(changed) == ChallengeReason.COOKIE_INVALID


@pytest.mark.parametrize("length", [0, 1, 33, 41, 56])
def test_a_short_cookie_is_refused(length: int) -> None:
    """No truncation leads anywhere but to a refusal."""
    assert refusal(sealed()[:length]) == ChallengeReason.COOKIE_INVALID


def test_a_cookie_that_is_too_long_is_refused() -> None:
    """Length is bounded before anything is computed."""
    assert refusal(sealed() + bytes(70_000)) == ChallengeReason.COOKIE_INVALID


def test_a_cookie_of_another_service_is_refused() -> None:
    """A key of one's own makes no cookie."""
    assert refusal(sealed(bytes(32))) == ChallengeReason.COOKIE_INVALID


def test_a_cookie_of_another_purpose_is_refused() -> None:
    """The state of a challenge is not that of an enrolment."""
    assert refusal(sealed(), purpose=CookiePurpose.ENROLLMENT) == ChallengeReason.COOKIE_INVALID


@pytest.mark.parametrize("late", [0, 1, 1_000_000])
def test_an_expired_cookie_is_refused(late: int) -> None:
    """A cookie ends with the second that it names."""
    assert refusal(sealed(), now=EXPIRY + late) == ChallengeReason.CHALLENGE_EXPIRED


def test_two_cookies_share_no_key() -> None:
    """Each id has a key of its own, so that the constant nonce never meets a key twice."""
    box = CookieBox(KEY)
    one, other = (
        box.seal(CookiePurpose.CHALLENGE, b"state", cookie_id=bytes([number]) * 32, expires_at=EXPIRY)
        for number in (1, 2)
    )
    assert one[33:] != other[33:]


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    """A cut or empty key file is an error, not a weak key."""
    with pytest.raises(ValueError, match="32 bytes"):
        CookieBox(bytes(length))


def test_an_id_of_another_length_is_refused() -> None:
    """An id that could repeat is never used."""
    with pytest.raises(ValueError, match="32 bytes"):
        CookieBox(KEY).seal(CookiePurpose.CHALLENGE, b"", cookie_id=bytes(16), expires_at=EXPIRY)


def test_derived_secrets_differ_by_label_and_context() -> None:
    """A secret of one use is none of another."""
    box = CookieBox(KEY)
    secrets = {box.derive(label, context) for label in (b"a", b"b") for context in (b"c", b"d")}
    assert len(secrets) == 4
