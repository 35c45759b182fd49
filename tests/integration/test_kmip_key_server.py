"""The KMIP client against a key server that is not ours: PyKMIP's, over TLS on loopback."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keyprovider.errors import (
    KmipConnectionFailed,
    KmipConnectionReason,
    KmipError,
    KmipKeyMissing,
    KmipKeyReason,
    KmipKeyUnusable,
    KmipRefusal,
    KmipRefused,
)
from keyprovider.keymaterial import SecretKey
from keyprovider.kmip.attribute_operations import AddAttribute, GetAttributeList, GetAttributes, ModifyAttribute
from keyprovider.kmip.attributes import Attribute, find_attribute
from keyprovider.kmip.client import KmipClient
from keyprovider.kmip.connection import ServerAddress
from keyprovider.kmip.encryption import Decrypt, Encrypt
from keyprovider.kmip.messages import Credential, ProtocolVersion
from keyprovider.kmip.operations import (
    Activate,
    Create,
    Destroy,
    DiscoverVersions,
    Get,
    Locate,
    Query,
    Register,
    Revoke,
)
from keyprovider.kmip.stamp import HOST, VIRTUAL_MACHINE, CreationStamp, UseStamp, stamp_key
from keyprovider.kmip.tags import KeyState, Operation, RevocationReason
from tests.kmip_server import KmipAuthority, KmipServer, kmip_client, kmip_server

__all__ = ["kmip_client", "kmip_server"]

_CREATION = CreationStamp("Garant", "Garant standard provider", "0.1.0")


@pytest.fixture(params=[(1, 0), (1, 1), (1, 2), (1, 3), (1, 4)], ids=lambda pair: f"{pair[0]}.{pair[1]}")
def versioned(kmip_server: KmipServer, request: pytest.FixtureRequest) -> Iterator[KmipClient]:
    """A client that speaks one version only."""
    versions = [ProtocolVersion(*request.param)]
    with KmipClient([kmip_server.address], kmip_server.authority.client(), versions=versions) as client:
        yield client


def _active_key(client: KmipClient) -> str:
    key_id = client.create_key()
    client.call(Activate(key_id))
    return key_id


def _plain(key: SecretKey) -> bytes:
    with key:
        return bytes(key.view())


def test_a_key_is_made_activated_and_fetched(versioned: KmipClient) -> None:
    """The server makes the KEK, its ID is what is kept, and the same key comes back by it (R-STD-1, R-STD-2)."""
    key_id = versioned.create_key()
    assert versioned.key_state(key_id) is KeyState.PRE_ACTIVE
    versioned.call(Activate(key_id))
    with versioned.fetch_active_key(key_id) as first, versioned.get_key(key_id) as second:
        assert len(first) == 32
        assert first.matches(second)


def test_a_registered_key_comes_back(versioned: KmipClient) -> None:
    """A key that was put into the server comes back unchanged, with its attributes."""
    with SecretKey.random() as key:
        key_id = versioned.call(Register(key, (Attribute("x-Note", "moved here"),)))
        with versioned.get_key(key_id) as fetched:
            assert fetched.matches(key)
    assert find_attribute(versioned.call(GetAttributes(key_id, ("x-Note",))), "x-Note") == "moved here"


def test_all_six_marks_are_on_a_key(versioned: KmipClient) -> None:
    """Three marks at creation and three at use; all six can be read and searched for (R-ATT-1 to R-ATT-4)."""
    key_id = versioned.create_key()
    use = UseStamp(VIRTUAL_MACHINE, "build-01", f"vm-{key_id}")
    assert stamp_key(versioned, key_id, _CREATION).complete
    assert stamp_key(versioned, key_id, use).added == ("x-Identifier", "x-Component", "x-Name")
    wanted = {**_CREATION.attributes(), **use.attributes()}
    found = versioned.call(GetAttributes(key_id, tuple(wanted)))
    assert {attribute.name: attribute.value for attribute in found} == wanted
    assert set(wanted) <= set(versioned.call(GetAttributeList(key_id)))
    assert versioned.call(Locate((Attribute("x-Identifier", f"vm-{key_id}"),))) == (key_id,)


def test_marks_are_changed_only_where_they_differ(kmip_client: KmipClient) -> None:
    """A renamed host gets its new name on the key, and marks that are right are left alone (R-ATT-3)."""
    key_id = kmip_client.create_key()
    stamp_key(kmip_client, key_id, UseStamp(HOST, "alpha", "uuid-1"))
    result = stamp_key(kmip_client, key_id, UseStamp(HOST, "beta", "uuid-1"))
    assert (result.added, result.modified, result.unchanged) == ((), ("x-Name",), ("x-Identifier", "x-Component"))
    assert find_attribute(kmip_client.call(GetAttributes(key_id, ("x-Name",))), "x-Name") == "beta"


def test_failing_to_mark_is_a_value(kmip_client: KmipClient) -> None:
    """Marks that cannot be set are reported, each with its reason, and nothing is raised (R-ATT-2)."""
    result = stamp_key(kmip_client, "no-such-key", _CREATION)
    assert not result.complete
    assert [name for name, _ in result.failures] == ["x-Product_Version", "x-Vendor", "x-Product"]
    assert all(isinstance(error, KmipKeyMissing) for _, error in result.failures)


def test_a_name_that_the_server_cannot_read_spoils_no_other_mark(kmip_client: KmipClient) -> None:
    """A name in UTF-8 is answered by one error without items, in another version: the other marks are set (R-ATT-2)."""
    key_id = _active_key(kmip_client)
    result = stamp_key(kmip_client, key_id, UseStamp(VIRTUAL_MACHINE, "Büro", "uuid-2"))
    assert result.added == ("x-Identifier", "x-Component")
    ((name, error),) = result.failures
    assert name == "x-Name"
    assert isinstance(error, KmipRefused)
    assert error.reason is KmipRefusal.BAD_REQUEST
    kmip_client.fetch_active_key(key_id).close()


def test_a_batch_stops_at_its_first_failure(kmip_client: KmipClient) -> None:
    """Of a batch each operation has its own outcome; those after a failure say that they were not carried out."""
    key_id = kmip_client.create_key()
    attributes = [Attribute("x-A", "1"), Attribute("x-A", "2"), Attribute("x-B", "3")]
    outcomes = kmip_client.batch([AddAttribute(key_id, attribute) for attribute in attributes])
    assert outcomes[0] is None
    reasons = [outcome.reason for outcome in outcomes[1:] if isinstance(outcome, KmipRefused)]
    assert reasons == [KmipRefusal.WRONG_STATE, KmipRefusal.NOT_PROCESSED]
    kmip_client.call(ModifyAttribute(key_id, Attribute("x-A", "2")))


@pytest.mark.parametrize(
    ("revocation", "reason"),
    [
        (RevocationReason.KEY_COMPROMISE, KmipKeyReason.COMPROMISED),
        (RevocationReason.CESSATION_OF_OPERATION, KmipKeyReason.DEACTIVATED),
    ],
)
def test_only_active_keys_are_used(
    kmip_client: KmipClient, revocation: RevocationReason, reason: KmipKeyReason
) -> None:
    """A key that is not yet, or no longer, Active is refused with its own reason; once destroyed it is missing."""
    key_id = kmip_client.create_key()
    with pytest.raises(KmipKeyUnusable) as caught:
        kmip_client.fetch_active_key(key_id)
    assert caught.value.reason is KmipKeyReason.PRE_ACTIVE
    kmip_client.call(Activate(key_id))
    kmip_client.call(Revoke(key_id, revocation, "test"))
    with pytest.raises(KmipKeyUnusable) as caught:
        kmip_client.fetch_active_key(key_id)
    assert (caught.value.reason, caught.value.key_id) == (reason, key_id)
    kmip_client.call(Destroy(key_id))
    with pytest.raises(KmipKeyMissing):
        kmip_client.fetch_active_key(key_id)


def test_a_missing_key_is_its_own_error(kmip_server: KmipServer, kmip_client: KmipClient) -> None:
    """A key that the key server lacks is reported as missing, with the key and the server (R-ERR-2)."""
    with pytest.raises(KmipKeyMissing) as caught:
        kmip_client.get_key("123456")
    assert (caught.value.key_id, caught.value.server) == ("123456", str(kmip_server.address))


def test_another_client_sees_no_key(kmip_server: KmipServer, kmip_client: KmipClient) -> None:
    """A key belongs to the client certificate that made it; another is refused, which is not "missing"."""
    key_id = _active_key(kmip_client)
    with kmip_server.client("somebody else") as other, pytest.raises(KmipRefused) as caught:
        other.get_key(key_id)
    assert (caught.value.reason, caught.value.key_id) == (KmipRefusal.PERMISSION_DENIED, key_id)


def test_encryption_on_the_server(kmip_client: KmipClient) -> None:
    """A key is wrapped and unwrapped by a key that stays on the server; a changed byte is refused."""
    key_id = _active_key(kmip_client)
    with SecretKey.random() as key:
        sealed = kmip_client.call(Encrypt(key_id, key, bytes(12), b"vm-1"))
        with kmip_client.call(Decrypt(key_id, sealed, bytes(12), b"vm-1")) as opened:
            assert opened.matches(key)
    for ciphertext, data in ((sealed[:-1] + bytes([sealed[-1] ^ 1]), b"vm-1"), (sealed, b"vm-2")):
        with pytest.raises(KmipRefused):
            kmip_client.call(Decrypt(key_id, ciphertext, bytes(12), data))


def test_encryption_needs_a_version_with_additional_data(kmip_server: KmipServer) -> None:
    """Where additional data cannot be bound, nothing is sent."""
    tls = kmip_server.authority.client()
    client = KmipClient([kmip_server.address], tls, versions=[ProtocolVersion(1, 2)])
    with client, SecretKey.random() as key, pytest.raises(KmipRefused) as caught:
        client.call(Encrypt("1", key, bytes(12), b""))
    assert caught.value.reason is KmipRefusal.NOT_SUPPORTED


def test_the_best_common_version_is_spoken(kmip_server: KmipServer, kmip_client: KmipClient) -> None:
    """The server tells its versions and operations; without a common one it is refused with what it speaks."""
    versions = kmip_client.call(DiscoverVersions())
    assert ProtocolVersion(1, 4) in versions
    assert Operation.CREATE in kmip_client.call(Query()).operations
    tls = kmip_server.authority.client()
    client = KmipClient([kmip_server.address], tls, versions=[ProtocolVersion(1, 9)])
    with client, pytest.raises(KmipRefused, match="speaks none of ours") as caught:
        client.create_key()
    assert caught.value.reason is KmipRefusal.NOT_SUPPORTED


def test_a_user_name_and_password_may_come_along(kmip_server: KmipServer) -> None:
    """The credential goes into the header, and its password into no text."""
    credential = Credential("operator", "correct horse")
    with KmipClient([kmip_server.address], kmip_server.authority.client(), credential=credential) as client:
        client.create_key()
    assert "horse" not in repr(credential)


def test_threads_share_a_client(kmip_server: KmipServer) -> None:
    """Eight threads on one client with few connections each get their own key, every time."""
    with KmipClient([kmip_server.address], kmip_server.authority.client(), connections_per_server=3) as client:
        ids = [_active_key(client) for _ in range(8)]
        keys = [_plain(client.get_key(key_id)) for key_id in ids]
        assert len(set(keys)) == 8

        def fetch(number: int) -> bool:
            return all(_plain(client.fetch_active_key(ids[number])) == keys[number] for _ in range(15))

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(fetch, range(8))) == [True] * 8


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[KmipServer]:
    """A key server that the test may stop."""
    server = KmipServer(tmp_path / "kmip")
    server.start()
    yield server
    server.stop()


def test_a_restarted_server_is_reached_again(own_server: KmipServer) -> None:
    """While the key server is down that is the error (R-ERR-3); when it is back, the same client goes on."""
    with own_server.client() as client:
        key_id = _active_key(client)
        before = _plain(client.get_key(key_id))
        own_server.stop()
        with pytest.raises(KmipConnectionFailed) as caught:
            client.get_key(key_id)
        assert caught.value.reason is KmipConnectionReason.UNREACHABLE
        assert caught.value.server == str(own_server.address)
        own_server.start()
        assert _plain(client.get_key(key_id)) == before
        assert client.create_key() != key_id


def test_replicas_are_tried_in_order(own_server: KmipServer, kmip_server: KmipServer, tmp_path: Path) -> None:
    """The next server serves when the first is down, is not trusted, or lacks the key; the first when it is back."""
    replica = KmipServer(own_server.directory, own_server.authority)
    replica.start()
    try:
        servers = [kmip_server.address, own_server.address, replica.address]
        with KmipClient(servers, own_server.authority.client()) as client:
            key_id = _active_key(client)
            own_server.stop()
            _plain(client.get_key(key_id))
            with pytest.raises(KmipKeyMissing) as caught:
                client.get_key("654321")
            assert caught.value.server == str(replica.address)
            replica.stop()
            with pytest.raises(KmipConnectionFailed):
                client.get_key(key_id)
            own_server.start()
            _plain(client.get_key(key_id))
    finally:
        replica.stop()


def test_a_key_that_one_replica_lacks_comes_from_another(own_server: KmipServer, kmip_server: KmipServer) -> None:
    """Replication takes time: a key is missing only when every server that answers says so."""
    both = KmipAuthority("a third").client(trusted=own_server.authority.pem + kmip_server.authority.pem)
    with own_server.client() as client:
        ids = [client.create_key() for _ in range(40)]
    tls = own_server.authority.client()
    late = KmipServer(own_server.directory / "late", own_server.authority)
    late.start()
    try:
        with KmipClient([late.address, own_server.address], tls) as client:
            _plain(client.get_key(ids[-1]))
    finally:
        late.stop()
    with KmipClient([own_server.address], both) as stranger, pytest.raises(KmipConnectionFailed) as caught:
        stranger.get_key(ids[-1])
    assert caught.value.reason is KmipConnectionReason.CLIENT_NOT_TRUSTED


def test_servers_that_are_not_trusted(kmip_server: KmipServer) -> None:
    """A server of a foreign authority, or under another name, is told nothing."""
    foreign = KmipAuthority("another").client()
    with KmipClient([kmip_server.address], foreign) as client, pytest.raises(KmipConnectionFailed) as caught:
        client.create_key()
    assert caught.value.reason is KmipConnectionReason.SERVER_NOT_TRUSTED
    other_name = ServerAddress("127.0.0.1", kmip_server.port, certificate_name="kms.example")
    tls = kmip_server.authority.client()
    with KmipClient([other_name], tls) as client, pytest.raises(KmipConnectionFailed) as caught:
        client.create_key()
    assert caught.value.reason is KmipConnectionReason.SERVER_NOT_TRUSTED
    assert not caught.value.outcome_unknown


def test_no_key_byte_in_errors_and_representations(kmip_client: KmipClient) -> None:
    """Keys are in no repr and no message: not of requests that hold one, nor of what is refused."""
    with SecretKey.random() as key:
        plain = bytes(key.view())
        request = Register(key)
        key_id = kmip_client.call(request)
        texts = [repr(request), repr(request.payload(ProtocolVersion(1, 4)))]
        texts.append(repr(Encrypt(key_id, key, bytes(12), b"")))
        with pytest.raises(KmipError) as caught:
            kmip_client.call(Encrypt(key_id, key, bytes(12), b""))
        texts += [repr(caught.value), str(caught.value)]
    for text in texts:
        assert plain.hex() not in text.lower()
        assert repr(plain)[2:-1] not in text


def test_no_thread_or_connection_is_left(kmip_server: KmipServer) -> None:
    """A client makes no thread, and a closed one keeps no connection."""
    before = threading.active_count()
    client = kmip_server.client()
    client.call(Create())
    client.close()
    assert threading.active_count() == before
    key_id = client.create_key()
    _ = client.call(GetAttributes(key_id, ("State",)))
    with pytest.raises(KmipKeyMissing):
        client.call(Get("0"))
