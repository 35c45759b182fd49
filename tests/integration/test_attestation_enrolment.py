"""Enrolment over gRPC, with real software TPMs: who becomes a member, and who does not."""

import datetime
import hashlib
import hmac

import pytest
from cryptography import x509

from attestation.errors import TpmError
from attestation.model import EkTemplate, HostId
from attestation.verifier.endorsement import read_endorsement_key
from garant.attestation.v1 import admin_pb2, attestation_pb2
from serving.authority import CertificateAuthority, certificate_pem
from serving.client import call
from serving.errors import RemoteError
from serving.identity import Role
from swtpm.ek_certificate import issue_ek_certificate
from tests.attestation_site import PROVIDER_LIST, Host, MakeHost, MovableClock, Principal, Service, Site, now
from tests.software_tpm import NOT_AFTER, NOT_BEFORE, EkCa, make_test_ek_ca


def refusal(host: Host, request: attestation_pb2.BeginEnrollmentRequest) -> str:
    """Why the first half is refused."""
    with pytest.raises(RemoteError) as caught:
        call(host.service.enrollment().BeginEnrollment, request)
    return caught.value.reason


def complete_refusal(host: Host, request: attestation_pb2.CompleteEnrollmentRequest) -> str:
    """Why the second half is refused."""
    with pytest.raises(RemoteError) as caught:
        host.complete(request)
    return caught.value.reason


def with_certificate(host: Host, certificate: bytes) -> attestation_pb2.BeginEnrollmentRequest:
    """A request with another endorsement key certificate."""
    request = host.begin_request()
    request.ek_certificate = certificate
    return request


def state_of(service: Service, host_id: str) -> int:
    """Where a host stands."""
    return call(service.admin().GetHost, admin_pb2.GetHostRequest(host=host_id)).host.state


@pytest.mark.parametrize("template", [EkTemplate.RSA_2048_LOW, EkTemplate.ECC_P384_HIGH])
def test_a_join_token_admits(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost, template: EkTemplate
) -> None:
    """Certificate chain, attestation key and credential activation, with either endorsement key of a real TPM."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a", template=template)
    answer = host.enroll(attestation_service.site.join_token("host-a", cluster="blue"))
    endorsement = host.tpm.endorsement_key()
    assert answer.host_id == read_endorsement_key(template, endorsement.public).host_id.text
    assert answer.state == attestation_pb2.ADMISSION_STATE_APPROVED
    assert answer.provider_list == PROVIDER_LIST
    found = call(attestation_service.admin().GetHost, admin_pb2.GetHostRequest(host="host-a")).host
    assert (found.host_id, found.cluster, found.anchor) == (answer.host_id, "blue", "ek-ca")


def test_without_a_token_an_administrator_decides(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost
) -> None:
    """A genuine TPM waits until it is approved."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    assert host.enroll().state == attestation_pb2.ADMISSION_STATE_REQUESTED
    request = admin_pb2.ApproveHostRequest(host_id=host.host_id, cluster="blue")
    approved = call(attestation_service.admin().ApproveHost, request).host
    assert (approved.state, approved.cluster) == (attestation_pb2.ADMISSION_STATE_APPROVED, "blue")
    assert host.enroll().state == attestation_pb2.ADMISSION_STATE_APPROVED


def test_an_answer_that_was_lost_is_given_again(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """The host that used a join token may show it once more, and stays what it is."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    token = attestation_service.site.join_token("host-a")
    assert host.enroll(token) == host.enroll(token)


@pytest.mark.parametrize("name", ["", "Host-A", "-a", "a" * 254, "a b", "a/b", "a..b", "ä"])
def test_a_host_name_is_a_dns_name(attestation_service: Service, make_host: MakeHost, name: str) -> None:
    """What goes into certificates and logs is checked first."""
    host = make_host("host-a")
    request = host.begin_request()
    request.host_name = name
    assert refusal(host, request) == "MALFORMED_REQUEST"


def test_requests_are_bounded(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """Each field has its limit (T15)."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    changes: dict[str, object] = {
        "ek_public": bytes(1025),
        "ak_public": bytes(1025),
        "ek_certificate": bytes(8193),
        "ek_intermediates": [b"certificate"] * 9,
        "join_token": "x" * 16_385,
        "ek_template": attestation_pb2.EK_TEMPLATE_UNSPECIFIED,
    }
    for name, value in changes.items():
        request = host.begin_request()
        request.ClearField(name)  # type: ignore[arg-type]
        request.MergeFrom(attestation_pb2.BeginEnrollmentRequest(**{name: value}))  # type: ignore[arg-type]
        assert refusal(host, request) == "MALFORMED_REQUEST", name


def test_a_template_that_does_not_fit_is_refused(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost
) -> None:
    """The key must be of the template that it claims."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a", template=EkTemplate.ECC_P384_HIGH)
    request = host.begin_request()
    request.ek_template = attestation_pb2.EK_TEMPLATE_RSA_2048_LOW
    assert refusal(host, request) == "EK_TEMPLATE_MISMATCH"


def test_certificates_that_prove_nothing_are_refused(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost
) -> None:
    """Missing, unreadable, self-made, expired, a CA's own, or another TPM's: each has its reason (T5)."""
    attestation_service.trust(ek_ca)
    host, other = make_host("host-a"), make_host("host-b")
    endorsement = host.tpm.endorsement_key()
    key = read_endorsement_key(endorsement.template, endorsement.public).key

    def issue(ca: EkCa, not_after: datetime.datetime = NOT_AFTER) -> bytes:
        return issue_ek_certificate(ca.key, ca.certificate, key, serial=5, not_before=NOT_BEFORE, not_after=not_after)

    assert refusal(host, with_certificate(host, b"")) == "EK_CERTIFICATE_MISSING"
    assert refusal(host, with_certificate(host, b"junk")) == "EK_CERTIFICATE_MALFORMED"
    assert refusal(host, with_certificate(host, issue(make_test_ek_ca()))) == "EK_CERTIFICATE_UNTRUSTED"
    assert (
        refusal(host, with_certificate(host, issue(ek_ca, now() - datetime.timedelta(seconds=5))))
        == "EK_CERTIFICATE_UNTRUSTED"
    )
    leaf_ca = EkCa(host.tls_key, ek_ca.certificate)
    assert refusal(host, with_certificate(host, issue(leaf_ca))) == "EK_CERTIFICATE_UNTRUSTED"
    others = other.tpm.endorsement_key().certificate or b""
    assert refusal(host, with_certificate(host, others)) == "EK_CERTIFICATE_OF_OTHER_KEY"
    assert host.begin(attestation_service.site.join_token("host-a")).cookie


def test_a_leaf_is_no_anchor(attestation_service: Service, make_host: MakeHost) -> None:
    """An administrator cannot make a TPM's own certificate the root of trust by mistake."""
    leaf = make_host("host-a").tpm.endorsement_key().certificate or b""
    text = certificate_pem(x509.load_der_x509_certificate(leaf)).decode()
    anchor = admin_pb2.Anchor(name="leaf", certificate_pem=text, allow_virtual=True)
    with pytest.raises(RemoteError) as caught:
        call(attestation_service.admin().AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
    assert caught.value.reason == "POLICY_REJECTED"


def test_a_software_tpm_needs_a_flagged_anchor(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A software TPM under an anchor for hardware is refused (T5)."""
    attestation_service.trust(ek_ca, allow_virtual=False)
    host = make_host("host-a")
    assert refusal(host, host.begin_request()) == "VIRTUAL_TPM_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("offset", "mask", "reason"),
    [(5, 0x01, "AK_ATTRIBUTES"), (5, 0x02, "AK_ATTRIBUTES"), (3, 0x0F, "AK_ALGORITHM"), (0, 0xFF, "MALFORMED_REQUEST")],
    ids=["unrestricted", "decrypts", "named by SHA-1", "no key"],
)
def test_a_wrong_attestation_key_is_refused(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost, offset: int, mask: int, reason: str
) -> None:
    """Attributes and algorithms are checked before anything is activated (T6)."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    request = host.begin_request()
    area = bytearray(request.ak_public)
    area[offset] ^= mask
    request.ak_public = bytes(area)
    assert refusal(host, request) == reason


def test_an_attestation_key_of_another_tpm_is_not_activated(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost
) -> None:
    """Neither TPM opens a credential for the endorsement key of one and the attestation key of the other (T6)."""
    attestation_service.trust(ek_ca)
    host, other = make_host("host-a"), make_host("host-b")
    request = host.begin_request()
    request.ak_public = other.tpm.attestation_key()
    begun = call(attestation_service.enrollment().BeginEnrollment, request)
    for one in (host, other):
        with pytest.raises(TpmError):
            one.prove(begun)
    guess = hmac.digest(bytes(32), hashlib.sha256(begun.cookie).digest(), "sha256")
    proof = attestation_pb2.CompleteEnrollmentRequest(cookie=begun.cookie, proof=guess)
    assert complete_refusal(host, proof) == "BAD_PROOF"


def test_there_is_one_try(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A wrong proof spends the cookie; the right one then comes too late (CVE-2023-38201)."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    good = host.prove(host.begin())
    for proof in (b"", bytes(32)):
        bad = attestation_pb2.CompleteEnrollmentRequest(cookie=good.cookie, proof=proof)
        assert complete_refusal(host, bad) in ("BAD_PROOF", "CHALLENGE_SPENT")
    assert complete_refusal(host, good) == "CHALLENGE_SPENT"
    with pytest.raises(RemoteError) as caught:
        state_of(attestation_service, "host-a")
    assert caught.value.reason == "NOT_FOUND"


def test_a_proof_is_used_once(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A recorded second half is of no use (T8)."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    proof = host.prove(host.begin())
    host.complete(proof)
    assert complete_refusal(host, proof) == "CHALLENGE_SPENT"


def test_a_cookie_is_the_services_own_and_young(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost, attestation_clock: MovableClock
) -> None:
    """Invented cookies, those of a challenge, and those older than a minute are refused."""
    attestation_service.trust(ek_ca, "good")
    host = make_host("host-a")
    request = host.prove(host.begin())
    for cookie in (b"", bytes(100), host.challenge("a" * 64).cookie):
        changed = attestation_pb2.CompleteEnrollmentRequest(cookie=cookie, proof=request.proof)
        assert complete_refusal(host, changed) == "COOKIE_INVALID"
    attestation_clock.advance(60)
    assert complete_refusal(host, request) == "CHALLENGE_EXPIRED"


def _foreign_admin(site: Site) -> Principal:
    """Somebody whom a CA of nobody calls a trust administrator."""
    site.cas["foreign"] = CertificateAuthority.create("trust-admin CA", now=now(), lifetime=NOT_AFTER - now())
    return site.principal(Role.TRUST_ADMIN, "alice", issuer="foreign")


def test_join_tokens_of_nobody_are_refused(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """Only trust administrators invite: not strangers, not other roles, not a token that was changed or has expired."""
    attestation_service.trust(ek_ca)
    site = attestation_service.site
    host = make_host("host-a")
    good = site.join_token("host-a")
    other = site.join_token("host-b")
    tokens = {
        "junk": "junk",
        "foreign": site.join_token("host-a", signer=_foreign_admin(site)),
        "key provider": site.join_token(
            "host-a", signer=site.principal(Role.KEY_PROVIDER_SERVICE, "kps", issuer="service")
        ),
        "role of another issuer": site.join_token(
            "host-a", signer=site.principal(Role.TRUST_ADMIN, "mallory", issuer="service")
        ),
        "expired": site.join_token("host-a", valid_for=-1),
        "payload of another": ".".join((good.split(".")[0], other.split(".")[1], good.split(".")[2])),
        "no signature": good.rpartition(".")[0] + ".",
        "cluster": site.join_token("host-a", cluster="not a name"),
    }
    for what, token in tokens.items():
        assert refusal(host, host.begin_request(token)) == "JOIN_TOKEN_INVALID", what


def test_a_join_token_is_for_its_host(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A token for another name does not admit."""
    attestation_service.trust(ek_ca)
    host = make_host("host-a")
    token = attestation_service.site.join_token("host-b")
    assert refusal(host, host.begin_request(token)) == "JOIN_TOKEN_FOR_OTHER_HOST"


def test_a_join_token_admits_one_host(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """The second TPM that shows a token stays outside, even if both began at the same time."""
    attestation_service.trust(ek_ca)
    first, second = make_host("host-a"), make_host("host-a")
    token = attestation_service.site.join_token("host-a")
    one, other = (host.prove(host.begin(token)) for host in (first, second))
    first.complete(one)
    assert complete_refusal(second, other) == "JOIN_TOKEN_SPENT"


def test_identity_is_immutable(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """No TPM takes a name over, and no host changes its own, fresh token or not (CVE-2025-13609)."""
    attestation_service.trust(ek_ca)
    site = attestation_service.site
    host, other = make_host("host-a"), make_host("host-a")
    host.enroll(site.join_token("host-a"))
    for token in ("", site.join_token("host-a")):
        assert complete_refusal(other, other.prove(other.begin(token))) == "IDENTITY_CONFLICT"
    host.name = "host-b"
    assert complete_refusal(host, host.prove(host.begin(site.join_token("host-b")))) == "IDENTITY_CONFLICT"
    assert HostId(host.host_id) == HostId(
        call(attestation_service.admin().GetHost, admin_pb2.GetHostRequest(host="host-a")).host.host_id
    )


def test_a_banned_host_does_not_return(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """A new join token does not undo a ban."""
    attestation_service.trust(ek_ca)
    site = attestation_service.site
    host = make_host("host-a")
    host.enroll(site.join_token("host-a"))
    call(attestation_service.admin().BanHost, admin_pb2.BanHostRequest(host_id=host.host_id, reason="stolen"))
    for token in ("", site.join_token("host-a")):
        assert complete_refusal(host, host.prove(host.begin(token))) == "HOST_BANNED"
    assert state_of(attestation_service, host.host_id) == attestation_pb2.ADMISSION_STATE_BANNED
