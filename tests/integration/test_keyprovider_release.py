"""Key release over real channels, by the service as a process of its own."""

import base64
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HpkeKem
from garant.keyprovider.v1 import keyprovider_pb2 as pb
from garant.keyprovider.v1 import keyprovider_pb2_grpc as pb_grpc
from keyprovider.envelope import WrapContext, unwrap_key
from keyprovider.errors import EnvelopeError
from keyprovider.grant import PlacementGrant, sign_grant
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.backends.software_format import decode_primary_keys
from keyprovider.trusted.store import SqlReleaseStore
from keyprovider.trusted.wrapped_key import split_version
from serving.client import call, open_channel
from serving.database import Database
from serving.errors import RemoteError
from serving.identity import Role
from tests.keyprovider_site import PROVIDER, HostClient, KeyProviderSite, RunningService, TestHost

VM = "5f0d8a4e-0a5c-4f6e-8a3b-2f1e0d9c8b7a"


@dataclass
class Stage:
    """A running site with one host that may have keys."""

    site: KeyProviderSite
    service: RunningService
    host: TestHost
    client: HostClient

    def create(self, component: str = "home") -> tuple[pb.CreateKeyResponse, SecretKey]:
        """Have a key made, all being well."""
        return self.client.create(VM, component, self.site.token(self.host), self.site.grant(self.host, VM))


@pytest.fixture
def site(tmp_path: Path) -> KeyProviderSite:
    """A site on SQLite."""
    return KeyProviderSite(tmp_path, f"sqlite:///{tmp_path / 'keyprovider.db'}")


@pytest.fixture
def stage(site: KeyProviderSite) -> Iterator[Stage]:
    """The site's service, running."""
    with site.attestation() as attestation, site.service(site.write_config(attestation)) as service:
        site.prepare(service)
        host = TestHost(site, "host-a")
        with open_channel(service.address, host.tls()) as channel:
            _await_heartbeat(site, host, channel)
            yield Stage(site, service, host, HostClient(host, channel))


def _await_heartbeat(site: KeyProviderSite, host: TestHost, channel: grpc.Channel) -> None:
    client, deadline = HostClient(host, channel), time.monotonic() + 10
    while True:
        try:
            client.create(VM, "home", site.token(host), site.grant(host, VM))
            return
        except RemoteError as exc:
            if exc.reason != "NO_HEARTBEAT" or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize("kem", list(HpkeKem))
def test_a_key_is_made_and_unwrapped_again(stage: Stage, kem: HpkeKem) -> None:
    """The host gets the same key from CreateKey and, after a new boot with new keys, from UnwrapKey (R-TA-4, B-19)."""
    created, key = stage.create("disk/root")
    assert len(created.wrapped_key) <= 512
    assert len(created.sealed_key) <= 2048
    later = TestHost(stage.site, "host-a", kem)
    with open_channel(stage.service.address, later.tls()) as channel:
        answer, again = HostClient(later, channel).unwrap(
            VM,
            "disk/root",
            stage.site.token(later),
            stage.site.grant(later, VM),
            created.key_reference,
            created.wrapped_key,
        )
    assert again.matches(key)
    assert answer.release_index == created.release_index + 1


def test_every_key_is_another(stage: Stage) -> None:
    """Two keys for one component have nothing in common, reference included."""
    (first, first_key), (second, second_key) = stage.create(), stage.create()
    assert first.key_reference != second.key_reference
    assert not first_key.matches(second_key)


def test_the_log_says_who_got_what(stage: Stage) -> None:
    """A release is in the log with host, VM, key, token, policy and boot, readable by the administrator (B-4)."""
    created, _ = stage.create("vtpm")
    admin = stage.site.client_tls(Role.TRUST_ADMIN, "admin", ec.generate_private_key(ec.SECP256R1()))
    with open_channel(stage.service.address, admin) as channel:
        stub = pb_grpc.KeyProviderAdminServiceStub(channel)
        answer = call(stub.ListReleases, pb.ListReleasesRequest(start_index=created.release_index))
    (release,) = answer.releases
    assert release.host_id == stage.host.host_id.text
    assert (release.vm_id, release.component, release.provider) == (VM, "vtpm", PROVIDER)
    assert (release.operation, release.key_reference) == ("create", created.key_reference)
    assert (release.policy_version, release.reset_count, release.restart_count) == (1, 3, 1)
    assert release.token_id.startswith("token-")
    assert release.grant_id.startswith("grant-")


def test_a_release_is_answered_only_after_others_can_read_it(stage: Stage) -> None:
    """When the key arrives, its record is in the database, seen through another connection (B-4)."""
    database = Database(stage.site.database_url)
    store = SqlReleaseStore(database)
    for _ in range(20):
        created, _ = stage.create()
        (entry,) = store.read(created.release_index, 1)
        assert entry.record.key_reference == created.key_reference
    database.close()


def test_a_release_waits_for_the_database(stage: Stage) -> None:
    """While another writer holds the database nothing is answered; when it lets go, everything is (B-4)."""
    database = Database(stage.site.database_url)
    with ThreadPoolExecutor(4) as pool:
        with database.write():
            waiting = [pool.submit(stage.create) for _ in range(4)]
            time.sleep(1)
            assert not any(each.done() for each in waiting)
        indexes = [each.result(15)[0].release_index for each in waiting]
    size = SqlReleaseStore(database).size()
    database.close()
    assert sorted(indexes) == list(range(size - 4, size))


def test_without_a_record_there_is_no_key(stage: Stage) -> None:
    """When the log cannot be written the release fails, and goes on when it can again (B-4)."""
    database = Database(stage.site.database_url)
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE keyprovider_release_log RENAME TO elsewhere")
    with pytest.raises(RemoteError) as refused:
        stage.create()
    assert (refused.value.reason, refused.value.code) == ("STORE_UNAVAILABLE", grpc.StatusCode.UNAVAILABLE)
    with database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO keyprovider_release_log")
    database.close()
    assert stage.create()[0].release_index == 1


Attempt = Callable[[Stage], None]


def _grant_of_another_vm(stage: Stage) -> None:
    grant = stage.site.grant(stage.host, str(uuid.uuid4()))
    stage.client.create(VM, "home", stage.site.token(stage.host), grant)


def _grant_of_another_host(stage: Stage) -> None:
    grant = stage.site.grant(TestHost(stage.site, "host-b"), VM)
    stage.client.create(VM, "home", stage.site.token(stage.host), grant)


def _no_grant(stage: Stage) -> None:
    stage.client.create(VM, "home", stage.site.token(stage.host), "")


def _grant_of_nobody_known(stage: Stage) -> None:
    now = int(time.time())
    grant = PlacementGrant("grant-1", "management", VM, stage.host.host_id, 1, now, now + 60)
    forged = sign_grant(grant, ec.generate_private_key(ec.SECP256R1()))
    stage.client.create(VM, "home", stage.site.token(stage.host), forged)


def _grant_in_anothers_name(stage: Stage) -> None:
    grant = stage.site.grant(stage.host, VM, principal="other-management")
    stage.client.create(VM, "home", stage.site.token(stage.host), grant)


def _expired_grant(stage: Stage) -> None:
    grant = stage.site.grant(stage.host, VM, expires_at=int(time.time()) - 1)
    stage.client.create(VM, "home", stage.site.token(stage.host), grant)


def _expired_token(stage: Stage) -> None:
    token = stage.site.token(stage.host, expires_at=int(time.time()) - 1)
    stage.client.create(VM, "home", token, stage.site.grant(stage.host, VM))


def _token_for_another_audience(stage: Stage) -> None:
    token = stage.site.token(stage.host, audience="elsewhere")
    stage.client.create(VM, "home", token, stage.site.grant(stage.host, VM))


def _token_of_another_host(stage: Stage) -> None:
    other = TestHost(stage.site, "host-b")
    stage.client.create(VM, "home", stage.site.token(other), stage.site.grant(other, VM))


def _token_of_another_key(stage: Stage) -> None:
    other_boot = TestHost(stage.site, "host-a")
    stage.client.create(VM, "home", stage.site.token(other_boot), stage.site.grant(stage.host, VM))


def _token_of_an_older_policy(stage: Stage) -> None:
    token = stage.site.token(stage.host, policy_version=0)
    stage.client.create(VM, "home", token, stage.site.grant(stage.host, VM))


def _unwrap_for_another_component(stage: Stage) -> None:
    created, _ = stage.create("home")
    token, grant = stage.site.token(stage.host), stage.site.grant(stage.host, VM)
    stage.client.unwrap(VM, "disk/root", token, grant, created.key_reference, created.wrapped_key)


def _unwrap_for_another_vm(stage: Stage) -> None:
    created, _ = stage.create("home")
    other = str(uuid.uuid4())
    token, grant = stage.site.token(stage.host), stage.site.grant(stage.host, other)
    stage.client.unwrap(other, "home", token, grant, created.key_reference, created.wrapped_key)


def _unwrap_under_another_primary_key(stage: Stage) -> None:
    created, _ = stage.create("home")
    token, grant = stage.site.token(stage.host), stage.site.grant(stage.host, VM)
    wrapped = (2).to_bytes(4, "big") + created.wrapped_key[4:]
    stage.client.unwrap(VM, "home", token, grant, created.key_reference, wrapped)


def _malformed_component(stage: Stage) -> None:
    stage.client.create(VM, "../home", stage.site.token(stage.host), stage.site.grant(stage.host, VM))


@pytest.mark.parametrize(
    ("attempt", "code", "reason"),
    [
        (_grant_of_another_vm, grpc.StatusCode.PERMISSION_DENIED, "GRANT_FOR_OTHER_VM"),
        (_grant_of_another_host, grpc.StatusCode.PERMISSION_DENIED, "GRANT_FOR_OTHER_HOST"),
        (_no_grant, grpc.StatusCode.PERMISSION_DENIED, "GRANT_MISSING"),
        (_grant_of_nobody_known, grpc.StatusCode.PERMISSION_DENIED, "GRANT_BAD_SIGNATURE"),
        (_grant_in_anothers_name, grpc.StatusCode.PERMISSION_DENIED, "GRANT_BAD_SIGNATURE"),
        (_expired_grant, grpc.StatusCode.PERMISSION_DENIED, "GRANT_EXPIRED"),
        (_expired_token, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
        (_token_for_another_audience, grpc.StatusCode.UNAUTHENTICATED, "TOKEN_WRONG_AUDIENCE"),
        (_token_of_another_host, grpc.StatusCode.PERMISSION_DENIED, "CERTIFICATE_OF_OTHER_HOST"),
        (_token_of_another_key, grpc.StatusCode.PERMISSION_DENIED, "TOKEN_OF_OTHER_KEY"),
        (_token_of_an_older_policy, grpc.StatusCode.PERMISSION_DENIED, "POLICY_TOO_OLD"),
        (_unwrap_for_another_component, grpc.StatusCode.INVALID_ARGUMENT, "WRAPPED_KEY_REFUSED"),
        (_unwrap_for_another_vm, grpc.StatusCode.INVALID_ARGUMENT, "WRAPPED_KEY_REFUSED"),
        (_unwrap_under_another_primary_key, grpc.StatusCode.UNAVAILABLE, "BACKEND_UNAVAILABLE"),
        (_malformed_component, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    shared_stage: Stage, attempt: Attempt, code: grpc.StatusCode, reason: str
) -> None:
    """Each wrong authority or request is refused with its own reason, and no key is given (B-19, R-TA-4)."""
    with pytest.raises(RemoteError) as refused:
        attempt(shared_stage)
    assert (refused.value.reason, refused.value.code) == (reason, code)


@pytest.fixture(scope="module")
def shared_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One running service for the tests that change nothing."""
    directory = tmp_path_factory.mktemp("shared")
    site = KeyProviderSite(directory, f"sqlite:///{directory / 'keyprovider.db'}")
    with site.attestation() as attestation, site.service(site.write_config(attestation)) as service:
        site.prepare(service)
        host = TestHost(site, "host-a")
        with open_channel(service.address, host.tls()) as channel:
            _await_heartbeat(site, host, channel)
            yield Stage(site, service, host, HostClient(host, channel))


def test_a_refused_request_leaves_no_record(shared_stage: Stage) -> None:
    """Only releases are in the release log."""
    before = shared_stage.create()[0].release_index
    for attempt in (_no_grant, _unwrap_for_another_vm):
        with pytest.raises(RemoteError):
            attempt(shared_stage)
    # One of the attempts made a key first; that is the one record between.
    assert shared_stage.create()[0].release_index == before + 2


@pytest.mark.parametrize("role", [Role.TRUST_ADMIN, Role.MANAGEMENT_SERVER])
def test_only_attested_hosts_may_ask(shared_stage: Stage, role: Role) -> None:
    """An administrator or management server with a host's token and grant gets nothing (R-TA-3, R-TA-4)."""
    site, host = shared_stage.site, shared_stage.host
    with open_channel(shared_stage.service.address, host.tls(role)) as channel, pytest.raises(RemoteError) as refused:
        HostClient(host, channel).create(VM, "home", site.token(host), site.grant(host, VM))
    assert refused.value.reason == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("role", "method", "reason"),
    [
        (Role.ATTESTED_HOST, "ListReleases", "ROLE_NOT_ALLOWED"),
        (Role.ATTESTED_HOST, "CreateProvider", "ROLE_NOT_ALLOWED"),
        (Role.MANAGEMENT_SERVER, "RegisterPrincipal", "ROLE_NOT_ALLOWED"),
        (Role.MANAGEMENT_SERVER, "CreateProvider", "ROLE_NOT_ALLOWED"),
    ],
)
def test_administration_is_for_trust_administrators(shared_stage: Stage, role: Role, method: str, reason: str) -> None:
    """Neither hosts nor management servers change or read what trust administrators do (R-TA-2)."""
    requests = {
        "ListReleases": pb.ListReleasesRequest(),
        "CreateProvider": pb.CreateProviderRequest(name="mine", backend=pb.BACKEND_SOFTWARE),
        "RegisterPrincipal": pb.RegisterPrincipalRequest(name="me", public_key=b""),
    }
    with open_channel(shared_stage.service.address, shared_stage.host.tls(role)) as channel:
        stub = pb_grpc.KeyProviderAdminServiceStub(channel)
        with pytest.raises(RemoteError) as refused:
            call(getattr(stub, method), requests[method], wait=True)
    assert refused.value.reason == reason


def test_administration_refuses_bad_input(shared_stage: Stage) -> None:
    """Names in use, keys that are none, unknown backends and oversized pages each have their answer."""
    admin = shared_stage.site.client_tls(Role.TRUST_ADMIN, "admin", ec.generate_private_key(ec.SECP256R1()))
    with open_channel(shared_stage.service.address, admin) as channel:
        stub = pb_grpc.KeyProviderAdminServiceStub(channel)
        listed = call(stub.ListProviders, pb.ListProvidersRequest()).providers
        assert [(each.name, each.backend, each.primary_version) for each in listed] == [
            (PROVIDER, pb.BACKEND_SOFTWARE, 1)
        ]
        cases: list[tuple[Callable[[], object], str]] = [
            (
                lambda: call(stub.CreateProvider, pb.CreateProviderRequest(name=PROVIDER, backend=pb.BACKEND_SOFTWARE)),
                "CONFLICT",
            ),
            (lambda: call(stub.CreateProvider, pb.CreateProviderRequest(name="silver")), "INVALID_ARGUMENT"),
            (
                lambda: call(stub.CreateProvider, pb.CreateProviderRequest(name="No", backend=pb.BACKEND_SOFTWARE)),
                "INVALID_ARGUMENT",
            ),
            (
                lambda: call(stub.RegisterPrincipal, pb.RegisterPrincipalRequest(name="m", public_key=b"no key")),
                "INVALID_ARGUMENT",
            ),
            (lambda: call(stub.ListReleases, pb.ListReleasesRequest(page_size=1001)), "INVALID_ARGUMENT"),
        ]
        for attempt, reason in cases:
            with pytest.raises(RemoteError) as refused:
                attempt()
            assert refused.value.reason == reason
        assert not call(stub.ListReleases, pb.ListReleasesRequest(start_index=(1 << 64) - 1)).releases


def test_a_sealed_key_opens_for_its_host_only(shared_stage: Stage) -> None:
    """What travels is of no use to another host, nor for another request (B-19)."""
    created, _ = shared_stage.create()
    with pytest.raises(EnvelopeError):
        TestHost(shared_stage.site, "host-b").sealing.open(created.sealed_key, b"")
    with pytest.raises(EnvelopeError):
        shared_stage.host.sealing.open(created.sealed_key, b"for something else")


def test_a_revoked_host_is_refused_within_ten_seconds(stage: Stage) -> None:
    """The heartbeat takes a host's access away though token and grant are still good."""
    stage.create()
    stage.site.revoke(stage.host)
    deadline, reasons = time.monotonic() + 10, list[str]()
    while not reasons and time.monotonic() < deadline:
        try:
            stage.create()
        except RemoteError as exc:
            reasons.append(exc.reason)
        time.sleep(0.1)
    assert reasons == ["HOST_REVOKED"]


def test_without_heartbeats_releases_end(site: KeyProviderSite) -> None:
    """Cut off from the attestation service, keys are given for max_staleness and no longer."""
    with site.attestation() as attestation:
        config = site.write_config(attestation, max_staleness_seconds=1)
        with site.service(config) as service:
            site.prepare(service)
            host = TestHost(site, "host-a")
            with open_channel(service.address, host.tls()) as channel:
                # Polled every two seconds, allowed one second of age: now it gives, now it does not.
                seen: set[str] = set()
                deadline = time.monotonic() + 20
                while {"given", "HEARTBEAT_STALE"} - seen and time.monotonic() < deadline:
                    try:
                        HostClient(host, channel).create(VM, "home", site.token(host), site.grant(host, VM))
                        seen.add("given")
                    except RemoteError as exc:
                        seen.add(exc.reason)
                    time.sleep(0.1)
    assert {"given", "HEARTBEAT_STALE"} <= seen


def test_two_services_over_one_database(tmp_path: Path, database_url: str) -> None:
    """What one service wrapped the other unwraps, both write one log without a gap (B-4)."""
    site = KeyProviderSite(tmp_path, database_url)
    with (
        site.attestation() as attestation,
        site.service(site.write_config(attestation), "one") as one,
        site.service(site.write_config(attestation), "two") as two,
    ):
        site.prepare(one)
        host = TestHost(site, "host-a")
        with open_channel(one.address, host.tls()) as first, open_channel(two.address, host.tls()) as second:
            for channel in (first, second):
                _await_heartbeat(site, host, channel)
            token, grant = site.token(host), site.grant(host, VM)
            clients = HostClient(host, first), HostClient(host, second)

            def there_and_back(number: int) -> list[int]:
                created, key = clients[number % 2].create(VM, "home", token, grant)
                answer, again = clients[1 - number % 2].unwrap(
                    VM, "home", token, grant, created.key_reference, created.wrapped_key
                )
                assert again.matches(key)
                return [created.release_index, answer.release_index]

            with ThreadPoolExecutor(8) as pool:
                indexes = sorted(index for pair in pool.map(there_and_back, range(40)) for index in pair)
    assert indexes == list(range(2, 82))


def test_a_killed_service_forgets_no_answered_release(site: KeyProviderSite) -> None:
    """After kill -9 under load every key that was answered is in the log (B-4)."""
    answered: list[tuple[int, str]] = []
    with site.attestation() as attestation, site.service(site.write_config(attestation)) as service:
        site.prepare(service)
        host = TestHost(site, "host-a")
        with open_channel(service.address, host.tls()) as channel:
            _await_heartbeat(site, host, channel)
            token, grant = site.token(host), site.grant(host, VM)
            enough = threading.Event()

            def ask() -> None:
                while True:
                    try:
                        created, _ = HostClient(host, channel).create(VM, "home", token, grant)
                    except RemoteError:
                        return
                    answered.append((created.release_index, created.key_reference))
                    if len(answered) > 100:
                        enough.set()

            with ThreadPoolExecutor(8) as pool:
                for _ in range(8):
                    pool.submit(ask)
                assert enough.wait(60)
                service.process.kill()
                channel.close()
    database = Database(site.database_url)
    entries = SqlReleaseStore(database).read(0, 1_000_000)
    database.close()
    assert [entry.index for entry in entries] == list(range(len(entries)))
    logged = {entry.index: entry.record.key_reference for entry in entries}
    assert all(logged[index] == reference for index, reference in answered)


def _forms(secret: bytes) -> list[bytes]:
    """A secret as it might lie in a file."""
    encoded = [base64.b64encode(secret), base64.urlsafe_b64encode(secret)]
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *(each.rstrip(b"=")[:-1] for each in encoded)]


def _found(directory: Path, secret: bytes) -> list[str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in _forms(secret))]


def test_no_file_of_the_service_holds_a_key(stage: Stage) -> None:
    """KEKs and primary keys are in no database, log or state file; a planted key is found (R-STD-3, R-STD-5)."""
    keys = []
    for component in ("home", "vtpm", "disk/root"):
        created, key = stage.create(component)
        version, blob = split_version(created.wrapped_key)
        keys.append(bytes(key.view()))
    directory = stage.site.directory
    with SecretKey.adopt((directory / "storage.key").read_bytes()) as storage:
        primaries = decode_primary_keys((directory / "primary-keys.json").read_bytes(), storage)
    context = WrapContext(PROVIDER, created.key_reference, VM, "disk/root")
    assert unwrap_key(primaries[PROVIDER, version], blob, context).matches(key)
    keys.append(bytes(primaries[PROVIDER, version].view()))
    for secret in keys:
        assert _found(directory, secret) == []
    assert _found(directory, (directory / "storage.key").read_bytes()) == ["storage.key"]
    for number, form in enumerate(_forms(keys[0])):
        planted = directory / f"planted-{number}"
        planted.write_bytes(b"before" + form + b"after")
        assert _found(directory, keys[0]) == [planted.name]
        planted.unlink()


def test_a_service_says_what_is_wrong_and_ends(site: KeyProviderSite) -> None:
    """A careless storage key ends the start with one line and exit code 2."""
    config = site.write_config("127.0.0.1:1")
    (site.directory / "storage.key").chmod(0o644)
    with pytest.raises(AssertionError, match="expected 0600"), site.service(config):
        pass
