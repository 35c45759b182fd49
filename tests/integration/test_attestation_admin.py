"""Administration of the attestation service, and who may call what."""

import itertools

import grpc
import pytest
from cryptography import x509

from attestation.__main__ import assemble
from attestation.simulator.boot import Recording
from attestation.token import verify_heartbeat
from attestation.verifier.rpc_admin import METHODS
from garant.attestation.v1 import admin_pb2, attestation_pb2
from serving.authority import certificate_pem
from serving.client import call
from serving.errors import ConfigError, RemoteError, StoreError
from serving.identity import Role
from serving.jws import key_id
from tests.attestation_site import MakeHost, MovableClock, Principal, Service, Site, now, policy_document, running
from tests.software_tpm import EkCa

ISSUERS = {
    Role.TRUST_ADMIN: "trust-admin",
    Role.ATTESTED_HOST: "host",
    Role.KEY_PROVIDER_SERVICE: "service",
    Role.ATTESTATION_SERVICE: "service",
    Role.MANAGEMENT_SERVER: "management",
    Role.VM_ADMIN: "management",
    Role.JOINED_HOST: "management",
}
MAY_CALL = {
    "AttestationAdminService": {Role.TRUST_ADMIN},
    "RevocationService": {Role.TRUST_ADMIN, Role.KEY_PROVIDER_SERVICE, Role.ATTESTED_HOST},
}
"""As the protos say it."""


def methods() -> list[str]:
    """Every method of the admin port, from its proto."""
    services = admin_pb2.DESCRIPTOR.services_by_name.values()
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def refusal(method: object, request: object) -> RemoteError:
    """How a call is refused."""
    with pytest.raises(RemoteError) as caught:
        call(method, request)  # type: ignore[arg-type]
    return caught.value


def test_the_table_names_every_method() -> None:
    """Each method of the protos is in the table, with the roles that its comment names, and nothing else is."""
    assert set(METHODS) == set(methods())
    for method, roles in METHODS.items():
        assert roles == MAY_CALL[method.split("/")[1].rpartition(".")[2]]


def test_every_method_and_role(attestation_service: Service) -> None:
    """Over the wire, each method answers exactly the roles that may call it (T1, CVE-2026-1709)."""
    site = attestation_service.site
    channels = {
        role: attestation_service.channel(
            attestation_service.admin_port, site.principal(role, "somebody", issuer=ISSUERS[role])
        )
        for role in Role
    }
    for role, method in itertools.product(Role, methods()):
        error = None
        try:
            call(channels[role].unary_unary(method), b"")
        except RemoteError as exc:
            error = exc
        if role in METHODS[method]:
            assert error is None or error.reason not in ("ROLE_NOT_ALLOWED", "CALLER_NOT_PROVEN"), (role, method)
        elif ISSUERS[role] == "management":
            # This CA may not even connect.
            assert error is not None, (role, method)
            assert error.code is grpc.StatusCode.UNAVAILABLE, (role, method)
        else:
            assert error is not None, (role, method)
            assert error.reason == "ROLE_NOT_ALLOWED", (role, method)


@pytest.mark.parametrize("issuer", ["service", "host"])
def test_a_role_is_proven_by_its_own_issuer(attestation_service: Service, issuer: str) -> None:
    """A CA that certifies hosts or services makes no administrators."""
    mallory = attestation_service.site.principal(Role.TRUST_ADMIN, "mallory", issuer=issuer)
    error = refusal(attestation_service.admin(mallory).ListHosts, admin_pb2.ListHostsRequest())
    assert error.reason == "CALLER_NOT_PROVEN"


def test_without_a_certificate_nobody_connects(attestation_service: Service) -> None:
    """The admin port is mutually authenticated."""
    channel = attestation_service.channel(attestation_service.admin_port, None)
    assert refusal(channel.unary_unary(methods()[0]), b"").code is grpc.StatusCode.UNAVAILABLE


def test_an_attested_host_may_ask_for_the_heartbeat(
    attestation_service: Service, ek_ca: EkCa, make_host: MakeHost
) -> None:
    """With the certificate that attestation gave it, and for nothing more."""
    attestation_service.trust(ek_ca, "good")
    host = make_host("host-a")
    host.enroll(attestation_service.site.join_token("host-a"))
    pem = host.attest().certificate_pem
    attested = Principal(x509.load_pem_x509_certificate(pem), host.tls_key)
    assert call(attestation_service.revocation(attested).GetHeartbeat, admin_pb2.GetHeartbeatRequest()).heartbeat
    assert refusal(attestation_service.admin(attested).ListHosts, admin_pb2.ListHostsRequest()).reason == (
        "ROLE_NOT_ALLOWED"
    )


def test_a_heartbeat_is_signed_and_ends(attestation_service: Service, attestation_clock: MovableClock) -> None:
    """It says epoch, revoked hosts and policy, from the service's clock, for a minute."""
    attestation_clock.advance(-20)
    answer = call(attestation_service.revocation().GetHeartbeat, admin_pb2.GetHeartbeatRequest())
    public = attestation_service.site.token_key.public_key()
    beat = verify_heartbeat(answer.heartbeat, keys={key_id(public): public}, now=int(now().timestamp()))
    assert (beat.epoch, beat.revoked, beat.policy_version) == (1, frozenset(), 0)
    assert beat.expires_at - beat.issued_at == 60
    assert 15 <= now().timestamp() - beat.issued_at <= 30


def test_anchors(attestation_service: Service, ek_ca: EkCa) -> None:
    """An anchor is added once, under a proper name, and shown as it is."""
    admin = attestation_service.admin()
    pem = certificate_pem(ek_ca.certificate).decode()
    anchor = admin_pb2.Anchor(name="vendor", certificate_pem=pem, allow_virtual=True)
    call(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
    assert list(call(admin.ListAnchors, admin_pb2.ListAnchorsRequest()).anchors) == [anchor]
    anchor.name = "the same again"
    assert refusal(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor)).reason == "MALFORMED_REQUEST"
    anchor.name = "again"
    assert refusal(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor)).reason == "CONFLICT"
    anchor.certificate_pem = "junk"
    assert refusal(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor)).reason == "POLICY_REJECTED"


def test_hosts_are_listed_and_found(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """In pages and by state; by id, prefix and name."""
    attestation_service.trust(ek_ca)
    admin = attestation_service.admin()
    hosts = [make_host(f"host-{number}") for number in range(3)]
    for number, host in enumerate(hosts):
        host.enroll(attestation_service.site.join_token(host.name) if number else "")
    first = call(admin.ListHosts, admin_pb2.ListHostsRequest(page_size=2))
    second = call(admin.ListHosts, admin_pb2.ListHostsRequest(page_size=2, page_token=first.next_page_token))
    listed = [host.host_id for host in (*first.hosts, *second.hosts)]
    assert (listed, second.next_page_token) == (sorted(host.host_id for host in hosts), "")
    requested = attestation_pb2.ADMISSION_STATE_REQUESTED
    waiting = call(admin.ListHosts, admin_pb2.ListHostsRequest(state=requested)).hosts
    assert [host.name for host in waiting] == ["host-0"]
    for text in ("host-1", hosts[1].host_id, hosts[1].host_id[:12]):
        assert call(admin.GetHost, admin_pb2.GetHostRequest(host=text)).host.host_id == hosts[1].host_id
    for text, reason in {"": "MALFORMED_REQUEST", hosts[1].host_id[:7]: "NOT_FOUND", "nobody": "NOT_FOUND"}.items():
        assert refusal(admin.GetHost, admin_pb2.GetHostRequest(host=text)).reason == reason
    for request in (
        admin_pb2.ListHostsRequest(page_size=1001),
        admin_pb2.ListHostsRequest(page_token="x"),
        admin_pb2.ListHostsRequest(state=99),  # type: ignore[arg-type]
    ):
        assert refusal(admin.ListHosts, request).reason == "MALFORMED_REQUEST"


def test_admission_steps_are_checked(attestation_service: Service, ek_ca: EkCa, make_host: MakeHost) -> None:
    """Unknown hosts, malformed ids and clusters, and steps that a state does not allow are refused."""
    attestation_service.trust(ek_ca)
    admin = attestation_service.admin()
    host = make_host("host-a")
    host.enroll(attestation_service.site.join_token("host-a"))
    approve, ban = admin_pb2.ApproveHostRequest, admin_pb2.BanHostRequest
    assert refusal(admin.ApproveHost, approve(host_id=host.host_id, cluster="blue")).reason == "CONFLICT"
    assert refusal(admin.ApproveHost, approve(host_id="a" * 64, cluster="blue")).reason == "NOT_FOUND"
    assert refusal(admin.ApproveHost, approve(host_id="a", cluster="blue")).reason == "MALFORMED_REQUEST"
    assert refusal(admin.ApproveHost, approve(host_id=host.host_id, cluster="")).reason == "MALFORMED_REQUEST"
    assert refusal(admin.BanHost, ban(host_id=host.host_id, reason="x" * 1001)).reason == "MALFORMED_REQUEST"
    assert refusal(admin.BanHost, ban(host_id="a" * 64)).reason == "NOT_FOUND"
    call(admin.BanHost, ban(host_id=host.host_id))
    assert refusal(admin.BanHost, ban(host_id=host.host_id)).reason == "CONFLICT"


def test_policies(attestation_service: Service) -> None:
    """A policy is typed, and its version only grows (T14)."""
    admin = attestation_service.admin()
    assert refusal(admin.GetPolicy, admin_pb2.GetPolicyRequest()).reason == "NOT_FOUND"
    put = call(admin.PutPolicy, admin_pb2.PutPolicyRequest(document=policy_document(3)))
    shown = call(admin.GetPolicy, admin_pb2.GetPolicyRequest())
    assert (put.version, put.hash, shown.document) == (3, shown.hash, policy_document(3))
    for version in (3, 2):
        request = admin_pb2.PutPolicyRequest(document=policy_document(version))
        assert refusal(admin.PutPolicy, request).reason == "CONFLICT"
    for document in ("", "{}", policy_document(4)[:-1] + ', "surprise": 1}'):
        assert refusal(admin.PutPolicy, admin_pb2.PutPolicyRequest(document=document)).reason == "POLICY_REJECTED"


def test_references(attestation_service: Service) -> None:
    """A reference needs a policy, a log that it covers, and a name of its own."""
    admin = attestation_service.admin()
    log, other = Recording.load("good").log, Recording.load("changed-command-line").log
    put = admin_pb2.PutReferenceRequest
    assert refusal(admin.PutReference, put(name="good", event_log=log)).reason == "CONFLICT"
    call(admin.PutPolicy, admin_pb2.PutPolicyRequest(document=policy_document(1)))
    reference = call(admin.PutReference, put(name="good", event_log=log)).reference
    assert (reference.name, reference.active) == ("good", True)
    assert reference.event_count > 10
    assert refusal(admin.PutReference, put(name="good", event_log=other)).reason == "CONFLICT"
    assert refusal(admin.PutReference, put(name="cut", event_log=log[:-1])).reason == "POLICY_REJECTED"
    assert refusal(admin.PutReference, put(name="a b", event_log=log)).reason == "MALFORMED_REQUEST"
    assert refusal(admin.PutReference, put(name="unknown")).reason == "NOT_FOUND"
    withdraw = admin_pb2.WithdrawReferenceRequest
    assert not call(admin.WithdrawReference, withdraw(name="good")).reference.active
    assert refusal(admin.WithdrawReference, withdraw(name="unknown")).reason == "NOT_FOUND"
    listed = call(admin.ListReferences, admin_pb2.ListReferencesRequest()).references
    assert [(one.name, one.active) for one in listed] == [("good", False)]
    assert call(admin.PutReference, put(name="good")).reference.active


def test_the_service_starts_where_it_stopped(attestation_site: Site, ek_ca: EkCa) -> None:
    """Policy, references and epoch are in the database, nowhere else."""
    with running(attestation_site) as service:
        service.trust(ek_ca, "good")
    with running(attestation_site) as service:
        admin = service.admin()
        assert call(admin.GetPolicy, admin_pb2.GetPolicyRequest()).document == policy_document(1)
        assert len(call(admin.ListReferences, admin_pb2.ListReferencesRequest()).references) == 1


@pytest.mark.parametrize("name", ["token.key", "host-ca.key", "cookie.key"])
def test_a_secret_that_others_may_read_is_refused(attestation_site: Site, name: str) -> None:
    """The message names the file and the remedy."""
    (attestation_site.directory / name).chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 .*{name}"):
        assemble(attestation_site.load_settings())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("token.key", b"junk"),
        ("host-ca.pem", b"junk"),
        ("cookie.key", bytes(31)),
        ("cookie.key", b""),
        ("server.pem", None),
        ("providers.jws", None),
        ("trust-admin-ca.pem", None),
    ],
)
def test_a_missing_or_wrong_file_is_named(attestation_site: Site, name: str, content: bytes | None) -> None:
    """The service does not start on half a configuration."""
    path = attestation_site.directory / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        assemble(attestation_site.load_settings())


def test_an_unusable_database_is_said(attestation_site: Site) -> None:
    """A database that is not there is an error at the start."""
    attestation_site.settings["database"] = f"sqlite:///{attestation_site.directory}/missing/attestation.db"
    with pytest.raises(StoreError):
        assemble(attestation_site.load_settings())
