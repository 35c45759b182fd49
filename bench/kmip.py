"""The KMIP client beside PyKMIP's, on the same server: CPU time per Get, and per decoded message."""

import datetime
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from bench.figures import Figure, per_cpu_second
from keyprovider.kmip.client import KmipClient
from keyprovider.kmip.connection import KmipTls, ServerAddress
from keyprovider.kmip.fields import byte_string, enumeration, integer, structure, text
from keyprovider.kmip.operations import Activate
from keyprovider.kmip.tags import Operation, Tag
from keyprovider.kmip.ttlv import Item, ItemType, decode, encode
from serving.authority import CertificateAuthority, certificate_pem, private_key_pem
from serving.identity import Identity, Role

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from kmip.core import enums, utils  # type: ignore[import-untyped]
    from kmip.core.messages import messages  # type: ignore[import-untyped]
    from kmip.pie.client import ProxyKmipClient  # type: ignore[import-untyped]

_CPU_REACH = 0.4
_DECODE_REACH = 5.0
_GETS, _ROUNDS = 150, 4
_REPOSITORY = Path(__file__).parents[1]


def measure() -> list[Figure]:
    """Get a key, and decode the answer to a Get, both ways."""
    return [_get(), _decode()]


def _get() -> Figure:
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        tls = _write_identities(directory)
        # By name: the server is part of the tests, which nothing here imports.
        argv = [sys.executable, "-m", "tests.pykmip_server", scratch, "0"]
        with subprocess.Popen(argv, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            ours, theirs = _cpu_per_get(directory, int(server.stdout.readline()), tls)
    return Figure(
        name="KMIP Get, CPU time of the client",
        value=ours * 1e6,
        unit="µs",
        floor="PyKMIP's client, same server",
        floor_value=theirs * 1e6,
        reach=f"at most {_CPU_REACH} of it",
        reached=ours <= _CPU_REACH * theirs,
    )


def _write_identities(directory: Path) -> KmipTls:
    now, lifetime = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    authority = CertificateAuthority.create("bench", now=now, lifetime=lifetime)
    trusted = certificate_pem(authority.certificate)
    (directory / "ca.pem").write_bytes(trusted)
    identity = Identity("bench.test", Role.MANAGEMENT_SERVER, "client")
    pair = []
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = authority.issue(identity, key.public_key(), now=now, lifetime=lifetime, server_names=["127.0.0.1"])
        pair = [private_key_pem(key), certificate_pem(leaf)]
        (directory / f"{name}.pem").write_bytes(b"".join(pair))
    return KmipTls(trusted, certificate=pair[1], private_key=pair[0])


def _cpu_per_get(directory: Path, port: int, tls: KmipTls) -> tuple[float, float]:
    with KmipClient([ServerAddress("127.0.0.1", port)], tls) as client:
        key_id = client.create_key()
        client.call(Activate(key_id))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            other = ProxyKmipClient(
                hostname="127.0.0.1",
                port=port,
                cert=str(directory / "client.pem"),
                key=str(directory / "client.pem"),
                ca=str(directory / "ca.pem"),
                kmip_version=enums.KMIPVersion.KMIP_1_4,
            )
            with other:
                # Best of some rounds in turn: the machine is busy with the server too.
                pairs = [
                    (_cpu(lambda: client.get_key(key_id).close()), _cpu(lambda: other.get(key_id)))
                    for _ in range(_ROUNDS)
                ]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def _cpu(work: Callable[[], object]) -> float:
    work()
    started = time.process_time()
    for _ in range(_GETS):
        work()
    return (time.process_time() - started) / _GETS


def _decode() -> Figure:
    message = bytes(encode(_answer()))

    def theirs() -> None:
        response = messages.ResponseMessage()
        response.read(utils.BytearrayStream(message), kmip_version=enums.KMIPVersion.KMIP_1_4)

    ours_rate, their_rate = per_cpu_second(lambda: decode(message)), per_cpu_second(theirs)
    return Figure(
        name="TTLV decode, answer to a Get",
        value=ours_rate,
        unit="messages/s of CPU",
        floor="PyKMIP's codec",
        floor_value=their_rate,
        reach=f"at least {_DECODE_REACH:.0f} times as many",
        reached=ours_rate >= _DECODE_REACH * their_rate,
    )


def _answer() -> Item:
    version = structure(
        Tag.PROTOCOL_VERSION, integer(Tag.PROTOCOL_VERSION_MAJOR, 1), integer(Tag.PROTOCOL_VERSION_MINOR, 4)
    )
    time_stamp = Item(0x420092, ItemType.DATE_TIME, 1_700_000_000)
    header = structure(Tag.RESPONSE_HEADER, version, time_stamp, integer(Tag.BATCH_COUNT, 1))
    block = structure(
        Tag.KEY_BLOCK,
        enumeration(Tag.KEY_FORMAT_TYPE, 1),
        structure(Tag.KEY_VALUE, byte_string(Tag.KEY_MATERIAL, bytes(32))),
        enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, 3),
        integer(Tag.CRYPTOGRAPHIC_LENGTH, 256),
    )
    payload = structure(
        Tag.RESPONSE_PAYLOAD,
        enumeration(Tag.OBJECT_TYPE, 2),
        text(Tag.UNIQUE_IDENTIFIER, "49a1ca88-6bea-4fb2-b450-7e58802c3038"),
        structure(Tag.SYMMETRIC_KEY, block),
    )
    item = structure(
        Tag.BATCH_ITEM,
        enumeration(Tag.OPERATION, Operation.GET),
        byte_string(Tag.UNIQUE_BATCH_ITEM_ID, b"12345678"),
        enumeration(Tag.RESULT_STATUS, 0),
        payload,
    )
    return structure(Tag.RESPONSE_MESSAGE, header, item)
