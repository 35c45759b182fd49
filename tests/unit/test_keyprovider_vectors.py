"""The published vectors, against the product and against a second reading of the formats written here (B-22)."""

import hashlib
import hmac
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyprovider.envelope import (
    WrapContext,
    decrypt_stream,
    derive_key,
    encrypt_stream,
    release_info,
    release_request_hash,
    unwrap_key,
    wrap_key,
)
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.wrapped_key import join_version, split_version

_VECTORS = Path(__file__).parents[2] / "docs" / "vectors"


def _cases(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((_VECTORS / name).read_text())["cases"]
    return cases


def _fields(*fields: bytes) -> bytes:
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    pseudorandom = hmac.digest(salt, key, "sha256")
    return hmac.digest(pseudorandom, info + b"\x01", "sha256")


def _plaintext(case: dict[str, Any]) -> bytes:
    plain = case["plaintext"]
    if "text" in plain:
        return str(plain["text"]).encode()
    unit, size = str(plain["repeat"]).encode(), int(plain["size"])
    return (unit * (size // len(unit) + 1))[:size]


@pytest.mark.parametrize("case", _cases("wrapped-key.json"), ids=lambda case: case["component"])
def test_wrapped_keys(case: dict[str, Any]) -> None:
    """Wrapping gives the published bytes, and they open."""
    context = WrapContext(case["provider"], case["key_reference"], case["vm_id"], case["component"])
    wrapped = bytes.fromhex(case["wrapped"])
    with (
        SecretKey.adopt(bytes.fromhex(case["wrapping_key"])) as wrapping,
        SecretKey.adopt(bytes.fromhex(case["key"])) as key,
    ):
        assert wrap_key(wrapping, key, context, nonce=bytes.fromhex(case["nonce"])) == wrapped
        assert unwrap_key(wrapping, wrapped, context).matches(key)
    beside = case["beside_the_vm"]
    assert join_version(beside["primary_version"], wrapped).hex() == beside["wrapped_key"]
    assert split_version(bytes.fromhex(beside["wrapped_key"])) == (beside["primary_version"], wrapped)


@pytest.mark.parametrize("case", _cases("wrapped-key.json"), ids=lambda case: case["component"])
def test_wrapped_keys_by_a_second_reading(case: dict[str, Any]) -> None:
    """The format's description alone is enough to open a wrapped key."""
    names = (case["provider"], case["key_reference"], case["vm_id"], case["component"])
    data = _fields(b"garant/wrap/v1", b"\x01", *(name.encode() for name in names))
    assert data.hex() == case["associated_data"]
    wrapped = bytes.fromhex(case["wrapped"])
    cipher = AESGCM(bytes.fromhex(case["wrapping_key"]))
    assert cipher.decrypt(wrapped[1:13], wrapped[13:], data).hex() == case["key"]


@pytest.mark.parametrize("case", _cases("sealed-file.json"), ids=lambda case: f"{case['label']}-{case['sealed_size']}")
def test_sealed_files(case: dict[str, Any]) -> None:
    """Encrypting gives the published bytes, and they decrypt."""
    target, opened = io.BytesIO(), io.BytesIO()
    with SecretKey.adopt(bytes.fromhex(case["key"])) as key:
        salt = bytes.fromhex(case["salt"])
        encrypt_stream(key, io.BytesIO(_plaintext(case)), target, label=case["label"], salt=salt)
        decrypt_stream(key, io.BytesIO(target.getvalue()), opened, label=case["label"])
        with derive_key(key, f"file/{case['label']}", salt=salt) as file_key:
            assert bytes(file_key.view()).hex() == case["file_key"]
    assert opened.getvalue() == _plaintext(case)
    assert len(target.getvalue()) == case["sealed_size"]
    assert hashlib.sha256(target.getvalue()).hexdigest() == case["sealed_sha256"]
    assert case["sealed"] in (None, target.getvalue().hex())


@pytest.mark.parametrize("case", _cases("sealed-file.json"), ids=lambda case: f"{case['label']}-{case['sealed_size']}")
def test_sealed_files_by_a_second_reading(case: dict[str, Any]) -> None:
    """The format's description alone is enough to seal a file."""
    salt, plain = bytes.fromhex(case["salt"]), _plaintext(case)
    file_key = _hkdf(bytes.fromhex(case["key"]), salt, f"garant/file/{case['label']}/v1".encode())
    assert file_key.hex() == case["file_key"]
    header = b"GRNTFILE\x01" + salt
    chunks = [plain[start : start + (1 << 20)] for start in range(0, len(plain), 1 << 20)] or [b""]
    sealed = header
    for number, chunk in enumerate(chunks):
        nonce = number.to_bytes(11, "big") + bytes([number == len(chunks) - 1])
        sealed += AESGCM(file_key).encrypt(nonce, chunk, header)
    assert hashlib.sha256(sealed).hexdigest() == case["sealed_sha256"]


@pytest.mark.parametrize("case", _cases("seal-info.json"), ids=lambda case: case["request"]["operation"])
def test_sealed_keys(case: dict[str, Any]) -> None:
    """Both ends compute the published info, and the sealed key opens for it."""
    request = {**case["request"], "wrapped_key": bytes.fromhex(case["request"]["wrapped_key"])}
    request_hash = release_request_hash(**request)
    assert request_hash.hex() == case["request_hash"]
    info = release_info(**case["release"], request_hash=request_hash)
    assert info.hex() == case["info"]
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["private_key"]))
    assert suite.decrypt(bytes.fromhex(case["sealed"]), private, info).hex() == case["key"]


@pytest.mark.parametrize("case", _cases("seal-info.json"), ids=lambda case: case["request"]["operation"])
def test_sealed_keys_by_a_second_reading(case: dict[str, Any]) -> None:
    """The format's description alone is enough to compute hash and info."""
    request, release = case["request"], case["release"]
    asked = [request[name].encode() for name in ("operation", "token", "grant", "provider", "vm_id", "component")]
    asked += [request["key_reference"].encode(), bytes.fromhex(request["wrapped_key"])]
    request_hash = hashlib.sha256(_fields(b"garant/release-request/v1", *asked)).digest()
    assert request_hash.hex() == case["request_hash"]
    names = ("token_id", "provider", "key_reference", "vm_id", "component", "host_id")
    info = _fields(b"garant/release/v1", *(release[name].encode() for name in names), request_hash)
    assert info.hex() == case["info"]
