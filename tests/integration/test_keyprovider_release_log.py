"""Witnessing the release log, provider policies and primary key versions, over real channels."""

import json
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.model import HpkeKem
from attestation.token import issuer_of
from cli.audit import app
from cli.session import reset_session
from garant.keyprovider.v1 import keyprovider_pb2 as pb
from garant.keyprovider.v1 import keyprovider_pb2_grpc as pb_grpc
from keyprovider.trusted import rpc
from keyprovider.trusted.administration import Administration
from keyprovider.trusted.backends.software import SoftwareBackend
from keyprovider.trusted.config import load_head_signer
from keyprovider.trusted.directory import Directory
from keyprovider.trusted.errors import ProofRejected
from keyprovider.trusted.heartbeat import HeartbeatKeeper
from keyprovider.trusted.log import decode_entry
from keyprovider.trusted.merkle import leaf_hash, verify_consistency
from keyprovider.trusted.model import BackendKind
from keyprovider.trusted.release import ReleaseRules
from keyprovider.trusted.release_writer import ReleaseWriter
from keyprovider.trusted.service import KeyReleaseService
from keyprovider.trusted.store import SqlProviderStore, SqlReleaseStore, open_schema
from keyprovider.trusted.tree_head import (
    UnverifiedReceipt,
    VerifiedTreeHead,
    verify_receipt,
    verify_tree_head,
)
from keyprovider.trusted.verification import TokenVerifier
from keyprovider.trusted.wrapped_key import split_version
from serving.authority import private_key_pem
from serving.authorization import AuthorizationTable
from serving.client import call, open_channel
from serving.database import Database
from serving.errors import ConfigError, RemoteError
from serving.identity import Role
from serving.jws import key_id
from serving.server import RpcServer, ServerTls
from tests.keyprovider_site import AUDIENCE, PROVIDER, SITE, HostClient, KeyProviderSite, TestHost

VM = "5f0d8a4e-0a5c-4f6e-8a3b-2f1e0d9c8b7a"
ROLES = (Role.TRUST_ADMIN, Role.ATTESTED_HOST, Role.MANAGEMENT_SERVER)
LOG_KEY = ec.generate_private_key(ec.SECP256R1())
LOG_KEYS = {key_id(LOG_KEY.public_key()): LOG_KEY.public_key()}


@contextmanager
def _serving(site: KeyProviderSite, *, with_log_key: bool = True) -> Iterator[str]:
    """The service in this process, put together of its parts, with the heartbeat brought by hand; gives its address."""
    with ExitStack() as stack:
        log_key = site.directory / "log-key.pem"
        log_key.touch(mode=0o600)
        log_key.write_bytes(private_key_pem(LOG_KEY))
        database = Database(site.database_url)
        stack.callback(database.close)
        open_schema(database)
        signer = load_head_signer(log_key if with_log_key else None, lambda: int(time.time()))
        providers, releases = SqlProviderStore(database), SqlReleaseStore(database, signer)
        directory = Directory(providers, time.monotonic)
        software = SoftwareBackend(site.directory / "primary-keys.json", site.directory / "storage.key")
        stack.callback(software.close)
        writer = ReleaseWriter(releases)
        stack.callback(writer.close)
        keys = {key_id(site.token_key.public_key()): site.token_key.public_key()}
        keeper = HeartbeatKeeper(keys, lambda: int(time.time()))
        keeper.offer(site.heartbeat())
        service = KeyReleaseService(
            tokens=TokenVerifier(keys, issuer=issuer_of(SITE), audience=AUDIENCE),
            directory=directory,
            backends={BackendKind.SOFTWARE: software},
            heartbeats=keeper,
            writer=writer,
            rules=ReleaseRules(300),
        )
        administration = Administration(
            providers=providers, releases=releases, backends={BackendKind.SOFTWARE: software}, directory=directory
        )
        cas = {role: site.directory / f"{role}-ca.pem" for role in ROLES}
        certificates = {role: (x509.load_pem_x509_certificate(path.read_bytes()),) for role, path in cas.items()}
        server = RpcServer(
            "127.0.0.1:0",
            tls=ServerTls.load(
                site.directory / "certificate.pem", site.directory / "private-key.pem", list(cas.values())
            ),
            services=rpc.services(service, administration),
            statuses=rpc.STATUSES,
            table=AuthorizationTable(rpc.METHODS, certificates),
        )
        server.start()
        stack.callback(server.stop, 0)
        yield f"127.0.0.1:{server.port}"


@dataclass
class Stage:
    """The service, an administrator and a host that witnesses the log."""

    site: KeyProviderSite
    address: str
    admin: pb_grpc.KeyProviderAdminServiceStub
    host: TestHost
    client: HostClient
    seen: VerifiedTreeHead | None = None

    def authority(self) -> pb.Authority:
        """A token and a grant for the VM."""
        return pb.Authority(token=self.site.token(self.host), grant=self.site.grant(self.host, VM))

    def create(self, component: str = "home", known: int | None = None) -> pb.CreateKeyResponse:
        """Have a key made; as a witness if ``known`` is given."""
        request = pb.CreateKeyRequest(
            authority=self.authority(), provider=PROVIDER, vm_id=VM, component=pb.Component(name=component)
        )
        if known is not None:
            request.known_tree_size = known
        return call(pb_grpc.KeyReleaseServiceStub(self.client.channel).CreateKey, request, wait=True)

    def unwrap(self, created: pb.CreateKeyResponse, wrapped: bytes, known: int | None = None) -> pb.UnwrapKeyResponse:
        """Have a key of the home unwrapped."""
        request = pb.UnwrapKeyRequest(
            authority=self.authority(),
            provider=PROVIDER,
            vm_id=VM,
            component=pb.Component(name="home"),
            key_reference=created.key_reference,
            wrapped_key=wrapped,
        )
        if known is not None:
            request.known_tree_size = known
        return call(pb_grpc.KeyReleaseServiceStub(self.client.channel).UnwrapKey, request)

    def rewrap(self, *keys: pb.WrappedKey, grant: str | None = None) -> list[bytes]:
        """Have keys of the VM rewrapped."""
        authority = self.authority()
        if grant is not None:
            authority.grant = grant
        request = pb.RewrapKeysRequest(authority=authority, provider=PROVIDER, vm_id=VM, keys=keys)
        stub = pb_grpc.KeyReleaseServiceStub(self.client.channel)
        return list(call(stub.RewrapKeys, request).wrapped_keys)

    def witness(self, answer: pb.CreateKeyResponse | pb.UnwrapKeyResponse) -> VerifiedTreeHead:
        """Check an answer as a host does, and keep its head."""
        self.seen = verify_receipt(_receipt(answer), seen=self.seen, keys=LOG_KEYS)
        return self.seen


def _receipt(answer: pb.CreateKeyResponse | pb.UnwrapKeyResponse) -> UnverifiedReceipt:
    log = answer.log
    return UnverifiedReceipt(
        log.tree_head,
        answer.release_index,
        leaf_hash(log.entry),
        tuple(log.inclusion_proof),
        tuple(log.consistency_proof),
    )


@contextmanager
def _stage(site: KeyProviderSite, *, with_log_key: bool = True) -> Iterator[Stage]:
    admin = site.client_tls(Role.TRUST_ADMIN, "admin", ec.generate_private_key(ec.SECP256R1()))
    host = TestHost(site, "host-a")
    with (
        _serving(site, with_log_key=with_log_key) as address,
        open_channel(address, admin) as admin_channel,
        open_channel(address, host.tls()) as host_channel,
    ):
        stub = pb_grpc.KeyProviderAdminServiceStub(admin_channel)
        if not call(stub.ListProviders, pb.ListProvidersRequest(), wait=True).providers:
            call(stub.CreateProvider, pb.CreateProviderRequest(name=PROVIDER, backend=pb.BACKEND_SOFTWARE))
        spki = site.principal_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        call(stub.RegisterPrincipal, pb.RegisterPrincipalRequest(name="management", public_key=spki))
        yield Stage(site, address, stub, host, HostClient(host, host_channel))


@pytest.fixture
def site(tmp_path: Path) -> KeyProviderSite:
    """A site on SQLite."""
    return KeyProviderSite(tmp_path, f"sqlite:///{tmp_path / 'keyprovider.db'}")


@pytest.fixture
def stage(site: KeyProviderSite) -> Iterator[Stage]:
    """The site's service, with a log key."""
    with _stage(site) as found:
        yield found


def test_a_host_follows_the_log(stage: Stage) -> None:
    """Each answer proves its release, and that the log still begins as the host saw it (B-4)."""
    created = stage.create(known=0)
    assert stage.witness(created).size == 1
    entry = decode_entry(created.log.entry)
    assert (entry.host_id, entry.vm_id, entry.key_reference) == (stage.host.host_id, VM, created.key_reference)
    for number in range(10):
        for _ in range(number % 3):
            stage.create()  # somebody else's
        assert stage.seen is not None
        answer = stage.unwrap(created, created.wrapped_key, stage.seen.size)
        assert stage.witness(answer).size == answer.release_index + 1


def test_hosts_that_ask_at_once_follow_the_log(stage: Stage) -> None:
    """Answers whose records shared a transaction prove each its own (B-4)."""
    first = stage.witness(stage.create(known=0))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: stage.create(known=first.size), range(40)))
    heads = [verify_receipt(_receipt(answer), seen=first, keys=LOG_KEYS) for answer in answers]
    assert sorted(answer.release_index for answer in answers) == list(range(1, 41))
    assert max(head.size for head in heads) == 41


def test_a_host_that_does_not_witness_gets_keys_as_ever(stage: Stage) -> None:
    """A request of an older host has its answer, with a head that it may ignore (B-4)."""
    created = stage.create()
    assert verify_tree_head(created.log.tree_head, keys=LOG_KEYS).size == 1
    assert not created.log.entry
    assert not created.log.inclusion_proof
    assert stage.unwrap(created, created.wrapped_key).release_index == 1


def test_without_a_log_key_there_are_keys_but_no_heads(site: KeyProviderSite) -> None:
    """A service without a log key says so, and works (B-4)."""
    with _stage(site, with_log_key=False) as stage:
        created = stage.create(known=0)
        assert created.release_index == 0
        assert created.log == pb.LogReceipt()
        with pytest.raises(ProofRejected):
            stage.witness(created)
        with pytest.raises(RemoteError) as refused:
            call(stage.admin.GetTreeHead, pb.GetTreeHeadRequest())
        assert (refused.value.reason, refused.value.code) == ("LOG_UNSIGNED", grpc.StatusCode.FAILED_PRECONDITION)


def test_after_a_cut_the_service_gives_no_key_to_who_saw_more(stage: Stage) -> None:
    """A database that was put back to an older state is noticed by the first host that saw more (B-4)."""
    for _ in range(4):
        seen = stage.witness(stage.create(known=stage.seen.size if stage.seen is not None else 0))
    database = Database(stage.site.database_url)
    with database.write() as connection:
        connection.execute(sa.text("DELETE FROM keyprovider_release_log WHERE log_index >= 2"))
        connection.execute(sa.text("UPDATE keyprovider_release_head SET size = 2"))
    database.close()
    with pytest.raises(RemoteError) as refused:
        stage.create(known=seen.size)
    assert (refused.value.reason, refused.value.code) == ("LOG_SHORTENED", grpc.StatusCode.FAILED_PRECONDITION)
    # Once it has grown past what was seen, its proofs no longer fit.
    stage.create()
    stage.create()
    with pytest.raises(ProofRejected, match="does not begin with"):
        stage.witness(stage.create(known=seen.size))


def test_any_witness_may_ask_for_heads_and_proofs(stage: Stage) -> None:
    """Administrator, management server and host get the newest head and its consistency with an older one (B-4)."""
    old = stage.witness(stage.create(known=0))
    for _ in range(6):
        stage.create()
    management = stage.site.client_tls(Role.MANAGEMENT_SERVER, "m", ec.generate_private_key(ec.SECP256R1()))
    with open_channel(stage.address, management) as channel:
        for stub in (
            stage.admin,
            pb_grpc.KeyProviderAdminServiceStub(channel),
            pb_grpc.KeyProviderAdminServiceStub(stage.client.channel),
        ):
            answer = call(stub.GetTreeHead, pb.GetTreeHeadRequest(), wait=True)
            head = verify_tree_head(answer.tree_head, keys=LOG_KEYS)
            assert head.size == answer.size == 7
            wanted = pb.GetConsistencyProofRequest(old_size=old.size, new_size=head.size)
            proof = list(call(stub.GetConsistencyProof, wanted).proof)
            verify_consistency(
                old_size=old.size, old_root=old.root, new_size=head.size, new_root=head.root, proof=proof
            )


@pytest.mark.parametrize(("old", "new"), [(2, 1), (0, 8), ((1 << 64) - 1, (1 << 64) - 1)])
def test_there_is_no_proof_for_what_is_not_there(stage: Stage, old: int, new: int) -> None:
    """Sizes in the wrong order or past the end are refused (B-4)."""
    stage.create()
    with pytest.raises(RemoteError) as refused:
        call(stage.admin.GetConsistencyProof, pb.GetConsistencyProofRequest(old_size=old, new_size=new))
    assert refused.value.reason == "INVALID_ARGUMENT"


def test_the_log_tells_all_it_knows(stage: Stage) -> None:
    """Principal, generation, reference boot and evidence are listed, with the bytes that the tree is over (B-4)."""
    created = stage.create(known=0)
    (release,) = call(stage.admin.ListReleases, pb.ListReleasesRequest()).releases
    assert (release.principal, release.generation, release.reference) == ("management", 1, "debian-12")
    assert release.evidence_digest == bytes(32)
    assert release.entry == created.log.entry


def _site_directory(stage: Stage, directory: Path) -> Path:
    """The site as the ``garant`` command finds it."""
    admin = stage.site.client_tls(Role.TRUST_ADMIN, "admin", ec.generate_private_key(ec.SECP256R1()))
    (directory / "trust-admin").mkdir(parents=True)
    (directory / "trust-admin/certificate.pem").write_bytes(admin.certificate_pem or b"")
    (directory / "trust-admin/private-key.pem").write_bytes(admin.private_key_pem or b"")
    (directory / "ca.pem").write_bytes(admin.server_cas_pem)
    pem = LOG_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "trust-authority/keyprovider").mkdir(parents=True)
    (directory / "trust-authority/keyprovider/log-key.pub.pem").write_bytes(pem)
    cas = {"trust_authority": "ca.pem", "management": "ca.pem"}
    addresses = {"attestation": {"admin": ""}, "keyprovider": stage.address, "management": "", "cas": cas}
    (directory / "site.json").write_text(json.dumps(addresses))
    return directory


def test_what_is_exported_passes_the_audit(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An administrator exports more than a page, an auditor checks it with a host's heads; a change is found (B-4)."""
    site = str(_site_directory(stage, tmp_path / "site"))
    seen = [stage.witness(stage.create(known=0)).text]
    database = Database(stage.site.database_url)
    record = SqlReleaseStore(database).read(0, 1)[0].record
    SqlReleaseStore(database).append([record] * 1_500)
    database.close()
    assert stage.seen is not None
    seen.append(stage.witness(stage.create(known=stage.seen.size)).text)
    witness, log = tmp_path / "host-a.heads", tmp_path / "releases.log"
    witness.write_text("\n".join(seen))
    reset_session()
    app(["export", "--site", site, str(log)], standalone_mode=False)
    assert log.stat().st_mode & 0o077 == 0
    assert app(["verify", "--site", site, "--witness", str(witness), str(log)], standalone_mode=False) in (0, None)
    assert "the log is intact: 1502 entries, as 3 signed heads say" in capsys.readouterr().out
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:700], *lines[701:]]))
    assert app(["verify", "--site", site, "--witness", str(witness), str(log)], standalone_mode=False) == 1
    reset_session()


def _policy(stage: Stage, **fields: Any) -> pb.ProviderPolicy:
    request = pb.UpdateProviderPolicyRequest(name=PROVIDER, policy=pb.ProviderPolicy(**fields))
    call(stage.admin.UpdateProviderPolicy, request)
    return call(stage.admin.GetProviderPolicy, pb.GetProviderPolicyRequest(name=PROVIDER)).policy


def test_a_policy_decides_at_once(stage: Stage) -> None:
    """Clusters, hosts, mechanisms and the least policy version are set, read back and obeyed (R-TA-4, B-15)."""
    me, other = stage.host.host_id.text, TestHost(stage.site, "host-b").host_id.text
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"clusters": pb.NameSet(names=["elsewhere"])}, "CLUSTER_NOT_ADMITTED"),
        ({"clusters": pb.NameSet()}, "CLUSTER_NOT_ADMITTED"),
        ({"hosts": pb.NameSet(names=[other])}, "HOST_NOT_ADMITTED"),
        ({"hosts": pb.NameSet()}, "HOST_NOT_ADMITTED"),
        ({"kems": pb.KemSet(ids=[HpkeKem.MLKEM768_X25519])}, "KEM_NOT_ALLOWED"),
        ({"kems": pb.KemSet()}, "KEM_NOT_ALLOWED"),
        ({"minimum_policy_version": 2}, "POLICY_TOO_OLD"),
    ]
    for fields, reason in refusals:
        _policy(stage, **fields)
        with pytest.raises(RemoteError) as refused:
            stage.create()
        assert refused.value.reason == reason
    wanted: dict[str, Any] = {
        "clusters": pb.NameSet(names=["default"]),
        "hosts": pb.NameSet(names=[me]),
        "kems": pb.KemSet(ids=[HpkeKem.X25519]),
        "minimum_policy_version": 1,
    }
    assert _policy(stage, **wanted) == pb.ProviderPolicy(**wanted)
    assert stage.create().release_index == 0
    every = _policy(stage)
    assert (every.HasField("clusters"), every.HasField("hosts")) == (False, False)
    assert set(every.kems.ids) == {int(kem) for kem in HpkeKem}


def test_a_provider_is_made_with_its_policy(stage: Stage) -> None:
    """There is no moment in which a new provider serves more than it shall (R-TA-4)."""
    policy = pb.ProviderPolicy(clusters=pb.NameSet(names=["prod"]))
    request = pb.CreateProviderRequest(name="silver", backend=pb.BACKEND_SOFTWARE, policy=policy)
    call(stage.admin.CreateProvider, request)
    kept = call(stage.admin.GetProviderPolicy, pb.GetProviderPolicyRequest(name="silver")).policy
    assert list(kept.clusters.names) == ["prod"]


@pytest.mark.parametrize(
    "policy",
    [
        None,
        pb.ProviderPolicy(clusters=pb.NameSet(names=["no cluster"])),
        pb.ProviderPolicy(hosts=pb.NameSet(names=["host-a"])),
        pb.ProviderPolicy(kems=pb.KemSet(ids=[1])),
        pb.ProviderPolicy(minimum_policy_version=1 << 63),
    ],
)
def test_a_malformed_policy_changes_nothing(stage: Stage, policy: pb.ProviderPolicy | None) -> None:
    """What is not understood is refused, never taken for "everything" (R-TA-4)."""
    before = _policy(stage, clusters=pb.NameSet(names=["default"]))
    with pytest.raises(RemoteError) as refused:
        call(stage.admin.UpdateProviderPolicy, pb.UpdateProviderPolicyRequest(name=PROVIDER, policy=policy))
    assert refused.value.reason == "INVALID_ARGUMENT"
    after = call(stage.admin.GetProviderPolicy, pb.GetProviderPolicyRequest(name=PROVIDER)).policy
    assert after == before


def _rotate(stage: Stage, seen: int) -> int:
    request = pb.RotatePrimaryKeyRequest(name=PROVIDER, from_version=seen)
    return call(stage.admin.RotatePrimaryKey, request).provider.primary_version


def test_after_a_rotation_old_keys_open_and_new_ones_are_wrapped_anew(stage: Stage) -> None:
    """The old version unwraps what it wrapped; rewrapping moves a key over and changes nothing in it (R-TA-4)."""
    created = stage.create()
    assert _rotate(stage, 1) == 2
    newer = stage.create()
    assert split_version(created.wrapped_key)[0] == 1
    assert split_version(newer.wrapped_key)[0] == 2
    assert stage.unwrap(created, created.wrapped_key).sealed_key
    home = pb.Component(name="home")
    rewrapped, same = stage.rewrap(
        pb.WrappedKey(component=home, key_reference=created.key_reference, wrapped_key=created.wrapped_key),
        pb.WrappedKey(component=home, key_reference=newer.key_reference, wrapped_key=newer.wrapped_key),
    )
    assert same == newer.wrapped_key
    assert split_version(rewrapped)[0] == 2
    token, grant = stage.site.token(stage.host), stage.site.grant(stage.host, VM)
    keys = [
        stage.client.unwrap(VM, "home", token, grant, created.key_reference, wrapped)[1]
        for wrapped in (created.wrapped_key, rewrapped)
    ]
    assert keys[0].matches(keys[1])


def test_rewrapping_is_no_release(stage: Stage) -> None:
    """No record is made, and no key in any form but wrapped is answered (B-4)."""
    created = stage.create()
    _rotate(stage, 1)
    key = pb.WrappedKey(
        component=pb.Component(name="home"),
        key_reference=created.key_reference,
        wrapped_key=created.wrapped_key,
    )
    stage.rewrap(key)
    assert len(call(stage.admin.ListReleases, pb.ListReleasesRequest()).releases) == 1


def test_rewrapping_takes_the_authority_of_unwrapping(stage: Stage) -> None:
    """Without a grant for the VM, or with a key of something else, nothing is rewrapped (B-19)."""
    created = stage.create()
    _rotate(stage, 1)
    home, disk = pb.Component(name="home"), pb.Component(name="disk/root")
    good = pb.WrappedKey(component=home, key_reference=created.key_reference, wrapped_key=created.wrapped_key)
    moved = pb.WrappedKey(component=disk, key_reference=created.key_reference, wrapped_key=created.wrapped_key)
    other_vm = stage.site.grant(stage.host, str(uuid.uuid4()))
    other_host = stage.site.grant(TestHost(stage.site, "host-b"), VM)
    cases: list[tuple[list[pb.WrappedKey], str | None, str]] = [
        ([good], "", "GRANT_MISSING"),
        ([good], other_vm, "GRANT_FOR_OTHER_VM"),
        ([good], other_host, "GRANT_FOR_OTHER_HOST"),
        ([good, moved], None, "WRAPPED_KEY_REFUSED"),
        ([], None, "INVALID_ARGUMENT"),
        ([good] * 65, None, "INVALID_ARGUMENT"),
    ]
    for keys, grant, reason in cases:
        with pytest.raises(RemoteError) as refused:
            stage.rewrap(*keys, grant=grant)
        assert refused.value.reason == reason


def test_a_repeated_rotation_rotates_once(stage: Stage) -> None:
    """Who saw an older version is refused; of many at once one rotates."""
    with ThreadPoolExecutor(4) as pool:
        attempts = [pool.submit(_rotate, stage, 1) for _ in range(4)]
        failures = [attempt.exception() for attempt in attempts]
    assert [failure for failure in failures if failure is None] == [None]
    assert all(isinstance(each, RemoteError) and each.reason == "CONFLICT" for each in failures if each is not None)
    assert [each.primary_version for each in call(stage.admin.ListProviders, pb.ListProvidersRequest()).providers] == [
        2
    ]


def test_a_rotation_that_broke_off_is_finished_by_the_next(stage: Stage) -> None:
    """A new primary key whose version was never announced is used, not made twice."""
    software = SoftwareBackend(stage.site.directory / "primary-keys.json", stage.site.directory / "storage.key")
    software.add_version(PROVIDER, 2)
    software.close()
    assert split_version(stage.create().wrapped_key)[0] == 1
    before = (stage.site.directory / "primary-keys.json").read_bytes()
    assert _rotate(stage, 1) == 2
    assert (stage.site.directory / "primary-keys.json").read_bytes() == before
    assert split_version(stage.create().wrapped_key)[0] == 2


def test_rotated_keys_survive_a_restart(site: KeyProviderSite) -> None:
    """Both versions and the log go on after the service was started anew (B-4)."""
    with _stage(site) as stage:
        created = stage.create(known=0)
        seen = stage.witness(created)
        _rotate(stage, 1)
    with _stage(site) as stage:
        stage.seen = seen
        answer = stage.unwrap(created, created.wrapped_key, seen.size)
        assert stage.witness(answer).size == 2
        assert split_version(stage.create().wrapped_key)[0] == 2


@pytest.mark.parametrize("role", [Role.ATTESTED_HOST, Role.MANAGEMENT_SERVER])
@pytest.mark.parametrize("method", ["UpdateProviderPolicy", "GetProviderPolicy", "RotatePrimaryKey"])
def test_policies_and_rotation_are_for_trust_administrators(stage: Stage, role: Role, method: str) -> None:
    """Neither hosts nor management servers change or read them (R-TA-2)."""
    with open_channel(stage.address, stage.host.tls(role)) as channel:
        stub = pb_grpc.KeyProviderAdminServiceStub(channel)
        request = getattr(pb, f"{method}Request")(name=PROVIDER)
        with pytest.raises(RemoteError) as refused:
            call(getattr(stub, method), request, wait=True)
    assert refused.value.reason == "ROLE_NOT_ALLOWED"


@pytest.mark.parametrize("role", [Role.TRUST_ADMIN, Role.MANAGEMENT_SERVER])
def test_rewrapping_is_for_attested_hosts(stage: Stage, role: Role) -> None:
    """Not even an administrator has a key rewrapped without being a host that may unwrap it (B-19)."""
    with open_channel(stage.address, stage.host.tls(role)) as channel, pytest.raises(RemoteError) as refused:
        call(
            pb_grpc.KeyReleaseServiceStub(channel).RewrapKeys,
            pb.RewrapKeysRequest(authority=stage.authority(), provider=PROVIDER, vm_id=VM),
            wait=True,
        )
    assert refused.value.reason == "ROLE_NOT_ALLOWED"


def test_a_bad_log_key_is_refused(tmp_path: Path) -> None:
    """A log key that is missing, open to others, or none is named when the service starts."""
    path = tmp_path / "log-key.pem"
    with pytest.raises(ConfigError, match="cannot read"):
        load_head_signer(path, lambda: 0)
    path.touch(mode=0o600)
    for content, told in (
        (b"no key", "no private key"),
        (private_key_pem(ec.generate_private_key(ec.SECP384R1())), "no P-256"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=told):
            load_head_signer(path, lambda: 0)
    path.write_bytes(private_key_pem(LOG_KEY))
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 0644"):
        load_head_signer(path, lambda: 0)
    path.chmod(0o600)
    signer = load_head_signer(path, lambda: 7)
    assert signer is not None
    assert verify_tree_head(signer(1, bytes(32)), keys=LOG_KEYS).timestamp == 7
