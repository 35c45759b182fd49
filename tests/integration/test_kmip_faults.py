"""The KMIP client against a key server that does what none should."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from keyprovider.errors import (
    KmipConnectionFailed,
    KmipConnectionReason,
    KmipError,
    KmipKeyReason,
    KmipKeyUnusable,
    KmipMalformed,
    KmipRefusal,
    KmipRefused,
)
from keyprovider.kmip.attribute_operations import GetAttributes
from keyprovider.kmip.client import KmipClient
from keyprovider.kmip.connection import KmipTls, ServerAddress, read_server_certificate
from keyprovider.kmip.fields import byte_string, enumeration, find_structure, integer, structure, text
from keyprovider.kmip.messages import ProtocolVersion
from keyprovider.kmip.operations import Get
from keyprovider.kmip.tags import Operation, Tag
from keyprovider.kmip.ttlv import Item, decode, encode
from tests.kmip_server import KmipAuthority

KEY = bytes(range(0x40, 0x60))
Answer = Callable[["_Request"], bytes | None]


class _Request:
    """What the server was asked."""

    def __init__(self, data: bytes, connection: ssl.SSLSocket) -> None:
        self.connection = connection
        message = decode(data).value
        assert isinstance(message, tuple)
        self.items = [item.value for item in message[1:] if isinstance(item.value, tuple)]

    @property
    def operation(self) -> int:
        return next(int(field.value) for field in self.items[0] if field.tag == Tag.OPERATION)

    def batch_id(self, number: int = 0) -> bytes:
        return next(bytes(field.value) for field in self.items[number] if field.tag == Tag.UNIQUE_BATCH_ITEM_ID)

    def key_id(self) -> str:
        payload = find_structure(self.items[0], Tag.REQUEST_PAYLOAD) or ()
        return next(str(field.value) for field in payload if field.tag == Tag.UNIQUE_IDENTIFIER)


def _response(*items: Item, version: tuple[int, int] = (1, 4)) -> bytes:
    spoken = structure(
        Tag.PROTOCOL_VERSION,
        integer(Tag.PROTOCOL_VERSION_MAJOR, version[0]),
        integer(Tag.PROTOCOL_VERSION_MINOR, version[1]),
    )
    header = structure(Tag.RESPONSE_HEADER, spoken, integer(Tag.BATCH_COUNT, len(items)))
    return bytes(encode(structure(Tag.RESPONSE_MESSAGE, header, *items)))


def _item(operation: int, batch_id: bytes, *payload: Item) -> Item:
    return structure(
        Tag.BATCH_ITEM,
        enumeration(Tag.OPERATION, operation),
        byte_string(Tag.UNIQUE_BATCH_ITEM_ID, batch_id),
        enumeration(Tag.RESULT_STATUS, 0),
        structure(Tag.RESPONSE_PAYLOAD, *payload),
    )


def _error(reason: int = 4) -> Item:
    return structure(Tag.BATCH_ITEM, enumeration(Tag.RESULT_STATUS, 1), enumeration(Tag.RESULT_REASON, reason))


def _versions(request: _Request) -> bytes:
    spoken = structure(
        Tag.PROTOCOL_VERSION, integer(Tag.PROTOCOL_VERSION_MAJOR, 1), integer(Tag.PROTOCOL_VERSION_MINOR, 4)
    )
    return _response(_item(Operation.DISCOVER_VERSIONS, request.batch_id(), spoken), version=(1, 1))


def _key(key_id: str, material: bytes = KEY, *, bits: int | None = None, algorithm: int = 3) -> tuple[Item, ...]:
    block = structure(
        Tag.KEY_BLOCK,
        enumeration(Tag.KEY_FORMAT_TYPE, 1),
        structure(Tag.KEY_VALUE, byte_string(Tag.KEY_MATERIAL, material)),
        enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, algorithm),
        integer(Tag.CRYPTOGRAPHIC_LENGTH, bits or 8 * len(material)),
    )
    return (
        enumeration(Tag.OBJECT_TYPE, 2),
        text(Tag.UNIQUE_IDENTIFIER, key_id),
        structure(Tag.SYMMETRIC_KEY, block),
    )


def _good(request: _Request) -> bytes:
    return _response(_item(Operation.GET, request.batch_id(), *_key(request.key_id())))


class FaultServer:
    """Answers version questions rightly and all else as it is told; counts what it is asked."""

    def __init__(self, pem: Path, answer: Answer) -> None:
        self.answer = answer
        self.asked: list[int] = []
        self.connections = 0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.address = ServerAddress("127.0.0.1", self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            _end(connection)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(plain)
            thread = threading.Thread(target=self._serve, args=(plain,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as connection:
                self._open.append(connection)
                self.connections += 1
                while header := connection.recv(8):
                    body = b""
                    while len(body) < int.from_bytes(header[4:], "big"):
                        body += connection.recv(65536)
                    request = _Request(header + body, connection)
                    if request.operation == Operation.DISCOVER_VERSIONS:
                        connection.sendall(_versions(request))
                        continue
                    self.asked.append(request.operation)
                    answer = self.answer(request)
                    if answer is None:
                        return
                    connection.sendall(answer)
        except (OSError, ValueError):
            return


def _end(connection: socket.socket) -> None:
    """End a connection that may have ended."""
    with suppress(OSError, ValueError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.fixture(scope="module")
def authority() -> KmipAuthority:
    """Issues all certificates here."""
    return KmipAuthority()


@pytest.fixture(scope="module")
def tls(authority: KmipAuthority) -> KmipTls:
    """The client's identity."""
    return authority.client()


@pytest.fixture
def pem(authority: KmipAuthority, tmp_path: Path) -> Path:
    """The server's certificate and key."""
    path = tmp_path / "server.pem"
    path.write_bytes(authority.server())
    return path


@contextmanager
def _asked(pem: Path, tls: KmipTls, answer: Answer, **options: float) -> Iterator[tuple[FaultServer, KmipClient]]:
    with FaultServer(pem, answer) as server, KmipClient([server.address], tls, **options) as client:  # type: ignore[arg-type]
        yield server, client


def _changed(change: Callable[[bytes], bytes]) -> Answer:
    return lambda request: change(_good(request))


MALFORMED: dict[str, Answer] = {
    "garbage": lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "no TTLV inside": _changed(lambda good: good[:20] + b"\xff" * (len(good) - 20)),
    "oversized announcement": lambda _: bytes.fromhex("42007B017FFFFFF8") + bytes(64),
    "another batch ID": lambda request: _response(_item(Operation.GET, b"87654321", *_key(request.key_id()))),
    "another operation": lambda request: _response(_item(Operation.LOCATE, request.batch_id())),
    "another key": lambda request: _response(_item(Operation.GET, request.batch_id(), *_key("other"))),
    "another version": lambda request: _response(
        _item(Operation.GET, request.batch_id(), *_key(request.key_id())), version=(1, 0)
    ),
    "no payload": lambda request: _response(
        structure(
            Tag.BATCH_ITEM,
            enumeration(Tag.OPERATION, Operation.GET),
            byte_string(Tag.UNIQUE_BATCH_ITEM_ID, request.batch_id()),
            enumeration(Tag.RESULT_STATUS, 0),
        )
    ),
    "no items": lambda _: _response(),
    "success without ID": lambda _: _response(
        structure(Tag.BATCH_ITEM, enumeration(Tag.RESULT_STATUS, 0), structure(Tag.RESPONSE_PAYLOAD))
    ),
    "pending": lambda request: _response(
        structure(
            Tag.BATCH_ITEM,
            byte_string(Tag.UNIQUE_BATCH_ITEM_ID, request.batch_id()),
            enumeration(Tag.OPERATION, Operation.GET),
            enumeration(Tag.RESULT_STATUS, 2),
        )
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
def test_malformed_answers_are_refused(pem: Path, tls: KmipTls, fault: str) -> None:
    """What is no answer to the request gives no key, says so with server and closes the connection."""
    with _asked(pem, tls, MALFORMED[fault]) as (server, client):
        with pytest.raises(KmipMalformed) as caught:
            client.get_key("k1")
        assert caught.value.server == str(server.address)
        assert server.asked == [Operation.GET]
        server.answer = _good
        client.get_key("k1").close()
        assert server.connections == 2


@pytest.mark.parametrize(
    ("material", "options", "reason"),
    [
        (bytes(16), {}, KmipKeyReason.WRONG_LENGTH),
        (bytes(33), {}, KmipKeyReason.WRONG_LENGTH),
        (b"", {}, KmipKeyReason.WRONG_LENGTH),
        (bytes(16), {"bits": 256}, KmipKeyReason.WRONG_LENGTH),
        (bytes(32), {"bits": 128}, KmipKeyReason.WRONG_LENGTH),
        (bytes(32), {"algorithm": 2}, KmipKeyReason.WRONG_ALGORITHM),
    ],
)
def test_other_keys_than_aes_256_are_refused(
    pem: Path, tls: KmipTls, material: bytes, options: dict[str, int], reason: KmipKeyReason
) -> None:
    """A key of another length or algorithm, said or real, is not used."""

    def answer(request: _Request) -> bytes:
        return _response(_item(Operation.GET, request.batch_id(), *_key(request.key_id(), material, **options)))

    with _asked(pem, tls, answer) as (_, client), pytest.raises(KmipKeyUnusable) as caught:
        client.get_key("k1")
    assert (caught.value.reason, caught.value.key_id) == (reason, "k1")


@pytest.mark.parametrize("version", [(1, 0), (1, 4), (2, 1)])
def test_an_error_without_items_in_any_version_is_an_error(pem: Path, tls: KmipTls, version: tuple[int, int]) -> None:
    """A server that cannot read the request answers one error with neither operation nor ID, in its own version."""
    with _asked(pem, tls, lambda _: _response(_error(), version=version)) as (_, client):
        with pytest.raises(KmipRefused) as caught:
            client.get_key("k1")
        assert (caught.value.reason, caught.value.code) == (KmipRefusal.BAD_REQUEST, 4)
        outcomes = client.batch([Get("k1"), Get("k2")])
    assert [type(outcome) for outcome in outcomes] == [KmipRefused, KmipRefused]


def test_another_batch_order_is_matched_by_id(pem: Path, tls: KmipTls) -> None:
    """Results are told apart by their IDs, not by their place."""

    def answer(request: _Request) -> bytes:
        named = [(n, text(Tag.UNIQUE_IDENTIFIER, f"k{n}")) for n in (1, 0)]
        return _response(*(_item(Operation.GET_ATTRIBUTES, request.batch_id(n), name) for n, name in named))

    with _asked(pem, tls, answer) as (_, client):
        assert client.batch([GetAttributes("k0", ()), GetAttributes("k1", ())]) == [(), ()]


@pytest.mark.parametrize("numbers", [(0,), (0, 0), (0, 1, 1)])
def test_batches_with_missing_or_repeated_answers_are_refused(
    pem: Path, tls: KmipTls, numbers: tuple[int, ...]
) -> None:
    """Fewer answers than operations are right only after a failure, and none may come twice."""

    def answer(request: _Request) -> bytes:
        named = [(n, text(Tag.UNIQUE_IDENTIFIER, f"k{n}")) for n in numbers]
        return _response(*(_item(Operation.GET_ATTRIBUTES, request.batch_id(n), name) for n, name in named))

    with _asked(pem, tls, answer) as (_, client), pytest.raises(KmipMalformed):
        client.batch([GetAttributes("k0", ()), GetAttributes("k1", ())])


def test_a_late_answer_is_never_read_by_the_next_request(pem: Path, tls: KmipTls) -> None:
    """After a timeout the connection is gone: the answer that comes late reaches nobody (R-ERR-3)."""
    late = threading.Event()

    def answer(request: _Request) -> bytes:
        if request.key_id() == "slow":
            late.wait(10)
        return _good(request)

    with _asked(pem, tls, answer, timeout_seconds=0.5) as (server, client):
        client.get_key("k1").close()
        with pytest.raises(KmipConnectionFailed) as caught:
            client.get_key("slow")
        assert caught.value.reason is KmipConnectionReason.TIMED_OUT
        late.set()
        with client.get_key("k2") as key:
            assert bytes(key.view()) == KEY
        assert server.connections == 2


def test_slow_answers_end_at_the_deadline(pem: Path, tls: KmipTls) -> None:
    """A server that sends a byte now and then does not hold a request longer than its deadline."""

    def answer(request: _Request) -> bytes:
        good = _good(request)
        for byte in good[:30]:
            request.connection.sendall(bytes([byte]))
            time.sleep(0.1)
        return good[30:]

    with _asked(pem, tls, answer, timeout_seconds=0.6) as (_, client):
        started = time.monotonic()
        with pytest.raises(KmipConnectionFailed) as caught:
            client.get_key("k1")
        assert caught.value.reason is KmipConnectionReason.TIMED_OUT
        assert time.monotonic() - started < 3


def test_a_server_that_does_not_shake_hands(tls: KmipTls) -> None:
    """A half-open server, that takes connections and says nothing, ends in a timeout, and nothing was asked."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = ServerAddress("127.0.0.1", listener.getsockname()[1])
        with KmipClient([address], tls, timeout_seconds=0.4) as client, pytest.raises(KmipConnectionFailed) as caught:
            client.create_key()
    assert caught.value.reason is KmipConnectionReason.TIMED_OUT
    assert not caught.value.outcome_unknown


def test_a_dead_connection_is_replaced_once_for_what_may_be_repeated(pem: Path, tls: KmipTls) -> None:
    """A Get goes out once more when the connection dies under it, and no third time."""
    with _asked(pem, tls, _good) as (server, client):
        client.get_key("k1").close()
        server.asked.clear()
        server.answer = lambda _: None
        with pytest.raises(KmipConnectionFailed) as caught:
            client.get_key("k1")
        assert caught.value.reason is KmipConnectionReason.CLOSED
        assert server.asked == [Operation.GET, Operation.GET]


def test_create_is_never_repeated(pem: Path, tls: KmipTls) -> None:
    """A Create whose answer was lost is sent neither again nor to another server, and the error says it may be done."""
    with FaultServer(pem, lambda _: None) as first, FaultServer(pem, lambda _: None) as second:
        with KmipClient([first.address, second.address], tls) as client, pytest.raises(KmipConnectionFailed) as caught:
            client.create_key()
        assert caught.value.outcome_unknown
        assert (first.asked, second.asked) == ([Operation.CREATE], [])


def test_another_server_helps_out(pem: Path, tls: KmipTls) -> None:
    """A Get that one server spoils is answered by the next, and the spoiler comes last for a while."""
    with FaultServer(pem, MALFORMED["garbage"]) as first, FaultServer(pem, _good) as second:
        with KmipClient([first.address, second.address], tls) as client:
            for _ in range(3):
                client.get_key("k1").close()
        assert (len(first.asked), len(second.asked)) == (1, 3)


def test_a_connection_that_died_while_idle_is_not_used(pem: Path, tls: KmipTls) -> None:
    """What the server closed, or wrote to unasked, is noticed before a request is put on it: Create is safe too."""
    unasked = _response(_item(Operation.GET, b"12345678", *_key("k1")))
    with _asked(pem, tls, _changed(lambda good: good + unasked)) as (server, client):
        client.get_key("k1").close()
        time.sleep(0.2)
        client.get_key("k2").close()
        assert server.connections == 2


def test_a_certificate_for_another_name_is_refused(authority: KmipAuthority, tls: KmipTls, tmp_path: Path) -> None:
    """Nothing is asked of a server whose certificate is for another name; an administrator can look at it."""
    other = tmp_path / "other.pem"
    other.write_bytes(authority.server(["kms.example"]))
    with _asked(other, tls, _good) as (server, client):
        with pytest.raises(KmipConnectionFailed) as caught:
            client.get_key("k1")
        assert caught.value.reason is KmipConnectionReason.SERVER_NOT_TRUSTED
        assert server.asked == []
        shown = read_server_certificate(server.address, timeout_seconds=5)
        pinned = KmipTls(ssl.DER_cert_to_PEM_cert(shown).encode(), tls.certificate, tls.private_key)
        named = ServerAddress(server.address.host, server.address.port, certificate_name="kms.example")
        with KmipClient([named], pinned) as trusting:
            trusting.get_key("k1").close()


def test_no_key_byte_leaks_into_errors(pem: Path, tls: KmipTls) -> None:
    """However an answer that holds a key is spoiled, no text about it holds the key."""
    for end in range(8, 300, 8):
        with _asked(pem, tls, _changed(lambda good: good[:end] + b"\x01" + good[end + 1 :])) as (_, client):  # noqa: B023
            try:
                client.get_key("k1").close()
            except KmipError as exc:
                chain = [exc, exc.__cause__, exc.__context__]
                texts = [repr(each) + str(each) for each in chain if each is not None]
                assert not any(KEY.hex() in each or repr(KEY)[2:-1] in each for each in texts)


def test_versions_are_remembered_until_a_failure(pem: Path, tls: KmipTls) -> None:
    """The version is asked for once, and spoken from then on."""
    with _asked(pem, tls, _good) as (server, client):
        for _ in range(3):
            client.get_key("k1").close()
        assert server.connections == 1
        assert client._pools[0].version == ProtocolVersion(1, 4)
