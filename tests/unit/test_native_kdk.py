"""KEKs of the native provider: wrapped under a KDK, for one component of one VM."""

import hmac
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyprovider.envelope import WrapContext
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey
from keyprovider.native.kdk import BLOB_SIZE, Kdk, KdkName, kdk_of, push_info, unwrap_kek, wrap_kek

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "docs" / "vectors" / "native-key.json").read_text())
CONTEXT = WrapContext("native", "reference", "11111111-1111-4111-8111-111111111111", "home")
NONCE = bytes(12)


def make_kdk(version: int = 1, provider: str = "native") -> Kdk:
    """A new KDK."""
    return Kdk(KdkName(provider, uuid.uuid4(), version), SecretKey.random())


def fields(*parts: bytes) -> bytes:
    """Parts, each with its length before it."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["component"])
def test_vectors(case: dict[str, Any]) -> None:
    """Wrapping gives the published bytes, and they open (R-NAT-3)."""
    name = KdkName(case["provider"], uuid.UUID(case["key_id"]), case["version"])
    context = WrapContext(case["provider"], case["key_reference"], case["vm_id"], case["component"])
    wrapped = bytes.fromhex(case["wrapped"])
    with SecretKey.adopt(bytes.fromhex(case["kdk"])) as key, SecretKey.adopt(bytes.fromhex(case["kek"])) as kek:
        assert wrap_kek(Kdk(name, key), kek, context, nonce=bytes.fromhex(case["nonce"])) == wrapped
        assert unwrap_kek(Kdk(name, key), wrapped, context).matches(kek)
    assert kdk_of(wrapped, "native") == name
    assert push_info(name, case["host"]).hex() == case["push_info"]


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["component"])
def test_vectors_by_a_second_reading(case: dict[str, Any]) -> None:
    """The format's description alone is enough to open a KEK, given its KDK."""
    blob = bytes.fromhex(case["wrapped"])
    assert blob[:1] == b"\x01"
    assert int.from_bytes(blob[1:5], "big") == case["version"]
    assert blob[5:21] == uuid.UUID(case["key_id"]).bytes
    pseudorandom = hmac.digest(blob[5:21] + blob[1:5], bytes.fromhex(case["kdk"]), "sha256")
    wrapping = hmac.digest(pseudorandom, b"garant/native/wrap/v1\x01", "sha256")
    assert wrapping.hex() == case["wrapping_key"]
    names = (case["provider"], case["key_reference"], case["vm_id"], case["component"])
    data = fields(b"garant/wrap/v1", b"\x01", *(name.encode() for name in names))
    assert AESGCM(wrapping).decrypt(blob[22:34], blob[34:], data).hex() == case["kek"]


@pytest.mark.parametrize(
    "other",
    [
        WrapContext("native", "reference", "22222222-2222-4222-8222-222222222222", "home"),
        WrapContext("native", "reference", CONTEXT.vm_id, "vtpm"),
        WrapContext("native", "another", CONTEXT.vm_id, "home"),
        WrapContext("bronze", "reference", CONTEXT.vm_id, "home"),
    ],
    ids=["VM", "component", "key reference", "provider"],
)
def test_kek_of_something_else_does_not_open(other: WrapContext) -> None:
    """A KEK opens for its own VM, component, key reference and provider only."""
    kdk = make_kdk()
    blob = wrap_kek(kdk, SecretKey.random(), CONTEXT, nonce=NONCE)
    unwrap_kek(kdk, blob, CONTEXT).close()
    with pytest.raises(EnvelopeError):
        unwrap_kek(kdk, blob, other)


def test_kek_of_another_version_does_not_open() -> None:
    """Neither another version's KDK opens a KEK, nor the same KDK under another version or id."""
    kdk = make_kdk(1)
    blob = wrap_kek(kdk, SecretKey.random(), CONTEXT, nonce=NONCE)
    with pytest.raises(EnvelopeError, match="version 2"):
        unwrap_kek(make_kdk(2), blob, CONTEXT)
    for renamed in (KdkName("native", kdk.name.key_id, 2), KdkName("native", uuid.uuid4(), 1)):
        with pytest.raises(EnvelopeError):
            unwrap_kek(Kdk(renamed, kdk.key), blob, CONTEXT)
        with pytest.raises(EnvelopeError):
            unwrap_kek(Kdk(renamed, kdk.key), renamed.head() + blob[21:], CONTEXT)


def test_every_changed_byte_is_refused() -> None:
    """No byte of a wrapped KEK can be changed, and none left off or added."""
    kdk = make_kdk()
    blob = wrap_kek(kdk, SecretKey.random(), CONTEXT, nonce=NONCE)
    assert len(blob) == BLOB_SIZE
    for at in range(len(blob)):
        changed = bytearray(blob)
        changed[at] ^= 1
        with pytest.raises(EnvelopeError):
            unwrap_kek(kdk, bytes(changed), CONTEXT)
    for other in (b"", blob[:-1], blob + b"\0"):
        with pytest.raises(EnvelopeError):
            unwrap_kek(kdk, other, CONTEXT)


def test_wrong_sizes_and_providers_are_refused() -> None:
    """A KDK and a KEK have 32 bytes, a version fits its field, and a KDK wraps for its own provider."""
    kdk = make_kdk()
    with pytest.raises(ValueError, match="32 bytes"):
        Kdk(kdk.name, SecretKey.random(16))
    with pytest.raises(ValueError, match="32 bytes"):
        wrap_kek(kdk, SecretKey.random(16), CONTEXT, nonce=NONCE)
    with pytest.raises(ValueError, match="provider"):
        wrap_kek(make_kdk(provider="bronze"), SecretKey.random(), CONTEXT, nonce=NONCE)
    for version in (0, 1 << 32):
        with pytest.raises(ValueError, match="version"):
            make_kdk(version)


def test_push_is_for_one_host_and_key() -> None:
    """What a KDK is sealed for names the host, the provider, the key id and the version."""
    name = KdkName("native", uuid.uuid4(), 1)
    others = [
        push_info(name, "host-b"),
        push_info(KdkName("bronze", name.key_id, 1), "host-a"),
        push_info(KdkName("native", uuid.uuid4(), 1), "host-a"),
        push_info(KdkName("native", name.key_id, 2), "host-a"),
    ]
    assert push_info(name, "host-a") not in others
