"""What a quote's extraData binds, against the published vectors."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.binding import LOG_ORDER, QuoteBinding, hpke_thumbprint, tls_thumbprint
from attestation.model import HostId, HpkeKem, LogKind

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "quote-binding.json").read_text())
VECTORS = DOCUMENT["cases"]


def tls_key(given: dict[str, Any]) -> ec.EllipticCurvePublicKey:
    """The vector's TLS key."""
    point = given["tls_public_key"]
    return ec.EllipticCurvePublicNumbers(int(point["x"], 16), int(point["y"], 16), ec.SECP256R1()).public_key()


def binding(given: dict[str, Any]) -> QuoteBinding:
    """The vector's binding, as a service computes it."""
    return QuoteBinding(
        nonce=bytes.fromhex(given["nonce"]),
        tls_thumbprint=tls_thumbprint(tls_key(given)),
        hpke_thumbprint=hpke_thumbprint(HpkeKem(given["hpke_kem"]), bytes.fromhex(given["hpke_public_key"])),
        log_hashes={LogKind(kind): hashlib.sha256(bytes.fromhex(log)).digest() for kind, log in given["logs"].items()},
        host_id=HostId(given["host_id"]),
        service_key=bytes.fromhex(given["service_key"]),
        audience=given["audience"],
    )


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_binding_is_the_published_one(vector: dict[str, Any]) -> None:
    """B-22: thumbprints and extraData are those that other implementations will compute."""
    bound = binding(vector["input"])
    assert bound.tls_thumbprint.hex() == vector["tls_thumbprint"]
    assert bound.hpke_thumbprint.hex() == vector["hpke_thumbprint"]
    assert bound.extra_data().hex() == vector["extra_data"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_the_description_alone_is_enough(vector: dict[str, Any]) -> None:
    """B-22: an implementation written from the words of the vectors' file agrees."""
    given = vector["input"]
    fields = [b"garant/quote/v1", bytes.fromhex(given["nonce"])]
    fields += [bytes.fromhex(vector["tls_thumbprint"]), bytes.fromhex(vector["hpke_thumbprint"])]
    for kind in ("tcg", "ima", "systemd"):
        log = given["logs"].get(kind)
        fields.append(b"" if log is None else hashlib.sha256(bytes.fromhex(log)).digest())
    fields += [bytes.fromhex(given["host_id"]), bytes.fromhex(given["service_key"]), given["audience"].encode()]
    transcript = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    assert hashlib.sha256(transcript).hexdigest() == vector["extra_data"]


HONEST = binding(VECTORS[1]["input"])
OTHER = bytes(32)


@pytest.mark.parametrize(
    "lie",
    [
        {"nonce": OTHER},
        {"tls_thumbprint": OTHER},
        {"hpke_thumbprint": OTHER},
        *({"log_hashes": {**HONEST.log_hashes, kind: OTHER}} for kind in LogKind),
        *({"log_hashes": {k: v for k, v in HONEST.log_hashes.items() if k is not kind}} for kind in LogKind),
        {"log_hashes": {LogKind.TCG: HONEST.log_hashes[LogKind.IMA], LogKind.IMA: HONEST.log_hashes[LogKind.TCG]}},
        {"host_id": HostId("0" * 64)},
        {"service_key": OTHER},
        {"audience": "other.example"},
    ],
    ids=range(13),
)
def test_every_field_is_bound(lie: dict[str, Any]) -> None:
    """T2, T6: a quote for another nonce, key, log, host, service or audience has another extraData."""
    assert replace(HONEST, **lie).extra_data() != HONEST.extra_data()


def test_a_host_that_hashes_its_logs_in_another_order_gets_the_same() -> None:
    """The order is the format's, not the mapping's."""
    backwards = {kind: HONEST.log_hashes[kind] for kind in reversed(LOG_ORDER)}
    assert replace(HONEST, log_hashes=backwards).extra_data() == HONEST.extra_data()


@pytest.mark.parametrize("field", ["nonce", "tls_thumbprint", "hpke_thumbprint", "service_key"])
def test_wrong_lengths_are_refused(field: str) -> None:
    """A shorter nonce or thumbprint is a mistake, not another binding."""
    with pytest.raises(ValueError, match="32 bytes"):
        replace(HONEST, **{field: bytes(31)})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32 bytes"):
        replace(HONEST, log_hashes={LogKind.TCG: b""})


def test_only_p256_keys_have_this_thumbprint() -> None:
    """Another curve's key is refused, not hashed as if it were P-256."""
    with pytest.raises(ValueError, match="secp384r1"):
        tls_thumbprint(ec.derive_private_key(1, ec.SECP384R1()).public_key())
