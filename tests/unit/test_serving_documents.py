"""Signed documents and join tokens: who signed, for what, until when."""

import base64
import datetime
import json
from dataclasses import replace

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from serving.authority import CertificateAuthority, certificate_pem
from serving.errors import IdentityError, JoinTokenError, JwsError
from serving.identity import Identity, Role, prove_caller
from serving.join_token import JoinInvitation, make_join_token, read_join_token, verify_join_token
from serving.jws import key_id, sign, verify

NOW = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.UTC)
HOUR = datetime.timedelta(hours=1)
KEY = ec.generate_private_key(ec.SECP256R1())
KEYS = {key_id(KEY.public_key()): KEY.public_key()}
TYPE = "garant-test+jws"
CA = CertificateAuthority.create("admins", now=NOW, lifetime=24 * HOUR)
ISSUERS = {Role.TRUST_ADMIN: (CA.certificate,), Role.VM_ADMIN: (CA.certificate,)}
INVITATION = JoinInvitation(
    token_id="abc",
    host_name="host-a",
    cluster="blue",
    expires_at=int((NOW + HOUR).timestamp()),
    address="127.0.0.1:1",
    ca_pem=certificate_pem(CA.certificate),
)


def encode(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_signed_document_comes_back() -> None:
    """Payload in, payload out."""
    assert verify(sign({"a": [1]}, key=KEY, typ=TYPE), keys=KEYS, typ=TYPE) == {"a": [1]}


def test_a_changed_document_is_refused() -> None:
    """One character of any part is enough."""
    text = sign({"a": 1}, key=KEY, typ=TYPE)
    header, payload, signature = text.split(".")
    for changed in (
        ".".join((header, encode(b'{"a":2}'), signature)),
        ".".join((header, payload, signature[:-4] + ("AAAA" if signature[-4:] != "AAAA" else "BBBB"))),
        ".".join((header, payload, "")),
        ".".join((encode(json.dumps({"alg": "none", "typ": TYPE, "kid": next(iter(KEYS))}).encode()), payload, "")),
    ):
        with pytest.raises(JwsError):
            verify(changed, keys=KEYS, typ=TYPE)


def test_a_document_of_another_type_is_refused() -> None:
    """A heartbeat is no token, though the same key signed it."""
    with pytest.raises(JwsError, match="type"):
        verify(sign({}, key=KEY, typ="garant-other+jws"), keys=KEYS, typ=TYPE)


def test_a_document_of_an_unknown_key_is_refused() -> None:
    """A key that the document brings itself is not looked at."""
    stranger = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(JwsError, match="unknown key"):
        verify(sign({}, key=stranger, typ=TYPE), keys=KEYS, typ=TYPE)
    own = {"typ": TYPE, "kid": next(iter(KEYS)), "jwk": jwt.algorithms.ECAlgorithm.to_jwk(stranger.public_key(), True)}
    text = jwt.api_jws.encode(b"{}", stranger, algorithm="ES256", headers=own)
    with pytest.raises(JwsError, match="signature"):
        verify(text, keys=KEYS, typ=TYPE)


def test_a_document_that_is_too_long_is_refused() -> None:
    """However well signed."""
    with pytest.raises(JwsError, match="at most 65536"):
        verify(sign({"a": "x" * 65_536}, key=KEY, typ=TYPE), keys=KEYS, typ=TYPE)


def test_a_certificate_for_servers_proves_no_caller() -> None:
    """Extended key usage is checked by us, not only by TLS."""
    identity = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://test.example/trust-admin/alice")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(CA.certificate.subject)
        .issuer_name(CA.certificate.subject)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(NOW - HOUR)
        .not_valid_after(NOW + HOUR)
        .add_extension(identity, critical=False)
    )
    for usage, proven in ((ExtendedKeyUsageOID.CLIENT_AUTH, True), (ExtendedKeyUsageOID.SERVER_AUTH, False)):
        extended = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        certificate = extended.sign(CA.key, hashes.SHA256())
        if proven:
            assert prove_caller(certificate, ISSUERS, NOW).identity.name == "alice"
        else:
            with pytest.raises(IdentityError, match="not for clients"):
                prove_caller(certificate, ISSUERS, NOW)


def test_another_algorithm_is_refused() -> None:
    """A public key is no HMAC secret."""
    headers = {"typ": TYPE, "kid": next(iter(KEYS))}
    text = jwt.api_jws.encode(b"{}", b"x" * 32, algorithm="HS256", headers=headers)
    with pytest.raises(JwsError):
        verify(text, keys=KEYS, typ=TYPE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "a.b.c",
        "ä.ä.ä",
        "a.b.c.d",
        encode(b"[" * 20_000) + ".e30.AA",
        encode(b'"x"') + ".e30.AA",
        "x" * 65_537,
    ],
    ids=["empty", "one dot", "two dots", "letters", "umlauts", "four parts", "deep", "no object", "too long"],
)
def test_malformed_documents_are_refused(text: str) -> None:
    """No other error comes out, whatever is sent."""
    with pytest.raises(JwsError):
        verify(text, keys=KEYS, typ=TYPE)


@pytest.mark.parametrize("payload", [b"[1]", b"1", b"\xff", b"[" * 20_000, b""])
def test_a_payload_is_an_object(payload: bytes) -> None:
    """Signed nonsense is nonsense."""
    headers = {"typ": TYPE, "kid": next(iter(KEYS))}
    text = jwt.api_jws.encode(payload, KEY, algorithm="ES256", headers=headers)
    with pytest.raises(JwsError):
        verify(text, keys=KEYS, typ=TYPE)


def admin(
    role: Role = Role.TRUST_ADMIN, ca: CertificateAuthority = CA
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Somebody who signs join tokens."""
    key = ec.generate_private_key(ec.SECP256R1())
    identity = Identity("test.example", role, "alice")
    return ca.issue(identity, key.public_key(), now=NOW, lifetime=2 * HOUR), key


def token(invitation: JoinInvitation = INVITATION, role: Role = Role.TRUST_ADMIN) -> str:
    """A join token."""
    certificate, key = admin(role)
    return make_join_token(invitation, certificate=certificate, key=key)


def refuse(text: str, *, now: datetime.datetime = NOW) -> str:
    """Why a join token is refused."""
    with pytest.raises(JoinTokenError) as caught:
        verify_join_token(text, issuers=ISSUERS, role=Role.TRUST_ADMIN, now=now)
    return str(caught.value)


def test_a_join_token_says_who_may_join_where() -> None:
    """Its holder and the server read the same."""
    text = token()
    assert read_join_token(text) == INVITATION
    assert verify_join_token(text, issuers=ISSUERS, role=Role.TRUST_ADMIN, now=NOW) == INVITATION


def test_a_join_token_ends() -> None:
    """With the second that it names."""
    assert "expired" in refuse(token(), now=NOW + HOUR)


def test_a_join_token_ends_with_its_signers_certificate() -> None:
    """An administrator who is none any more invites nobody."""
    late = replace(INVITATION, expires_at=int((NOW + 100 * HOUR).timestamp()))
    assert "not signed" in refuse(token(late), now=NOW + 3 * HOUR)


def test_a_join_token_of_another_role_is_refused() -> None:
    """VM administrators do not admit hosts to the trust authority."""
    assert "not by a trust-admin" in refuse(token(role=Role.VM_ADMIN))


def test_a_join_token_of_a_stranger_is_refused() -> None:
    """A CA of the same name is another CA."""
    stranger = CertificateAuthority.create("admins", now=NOW, lifetime=24 * HOUR)
    certificate, key = admin(ca=stranger)
    assert "not signed" in refuse(make_join_token(INVITATION, certificate=certificate, key=key))


def test_a_borrowed_certificate_is_refused() -> None:
    """Who shows an administrator's certificate must have signed with its key."""
    certificate, _ = admin()
    assert "not signed" in refuse(make_join_token(INVITATION, certificate=certificate, key=KEY))


@pytest.mark.parametrize("field", ["jti", "host", "cluster", "address", "ca", "exp", "admin"])
def test_a_join_token_has_all_fields(field: str) -> None:
    """Missing, empty and mistyped fields are refused, signed or not."""
    certificate, key = admin()
    text = make_join_token(INVITATION, certificate=certificate, key=key)
    payload = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))
    wrong: tuple[object, ...] = (None, "", [], {"a": 1})
    for value in wrong:
        refuse(sign({**payload, field: value}, key=key, typ="garant-join+jwt"))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", f"a.{encode(b'[1]')}.c", f"a.{encode(b'[' * 20_000)}.c", "ä.ä.ä"])
def test_malformed_join_tokens_are_refused(text: str) -> None:
    """For the server and for the holder alike."""
    refuse(text)
    with pytest.raises(JoinTokenError):
        read_join_token(text)
