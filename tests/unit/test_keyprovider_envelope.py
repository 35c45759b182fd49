"""Wrapped, derived and sealed keys."""

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.model import HpkeKem
from keyprovider.envelope import (
    SealingKey,
    WrapContext,
    derive_key,
    release_info,
    release_request_hash,
    seal_key,
    unwrap_key,
    wrap_key,
)
from keyprovider.envelope.seal import PUBLIC_SIZES
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

CONTEXT = WrapContext("gold", "ref-1", "7d0b1f3e-7c3b-4a2f-9a55-000000000001", "home")
NONCE = bytes(range(12))
INFO = b"what it is for"


@pytest.mark.parametrize("size", [1, 32, 64, 128])
def test_a_wrapped_key_opens_again(size: int) -> None:
    """Unwrapping gives back what was wrapped, 29 bytes shorter."""
    with SecretKey.random() as wrapping, SecretKey.random(size) as key:
        blob = wrap_key(wrapping, key, CONTEXT, nonce=NONCE)
        assert len(blob) == size + 29
        with unwrap_key(wrapping, blob, CONTEXT) as opened:
            assert opened.matches(key)


@pytest.mark.parametrize("field", ["provider", "key_reference", "vm_id", "component"])
def test_a_wrapped_key_opens_only_in_its_context(field: str) -> None:
    """A key of another provider, reference, VM or component is refused."""
    with SecretKey.random() as wrapping, SecretKey.random() as key:
        blob = wrap_key(wrapping, key, CONTEXT, nonce=NONCE)
        with pytest.raises(EnvelopeError, match="not wrapped by this key for this use"):
            unwrap_key(wrapping, blob, replace(CONTEXT, **{field: "other"}))


def test_fields_cannot_be_shifted_into_each_other() -> None:
    """The boundary between two fields of the context is part of it."""
    shifted = WrapContext(CONTEXT.provider + "r", CONTEXT.key_reference[1:], CONTEXT.vm_id, CONTEXT.component)
    with SecretKey.random() as wrapping, SecretKey.random() as key:
        blob = wrap_key(wrapping, key, CONTEXT, nonce=NONCE)
        with pytest.raises(EnvelopeError):
            unwrap_key(wrapping, blob, shifted)


def test_every_changed_bit_of_a_wrapped_key_is_refused() -> None:
    """Version, nonce, ciphertext and tag are all covered."""
    with SecretKey.random() as wrapping, SecretKey.random() as key:
        blob = wrap_key(wrapping, key, CONTEXT, nonce=NONCE)
        for bit in range(len(blob) * 8):
            changed = bytearray(blob)
            changed[bit // 8] ^= 1 << bit % 8
            with pytest.raises(EnvelopeError):
                unwrap_key(wrapping, bytes(changed), CONTEXT)


def test_another_wrapping_key_is_refused() -> None:
    """Only the key that wrapped opens."""
    with SecretKey.random() as wrapping, SecretKey.random() as other, SecretKey.random() as key:
        blob = wrap_key(wrapping, key, CONTEXT, nonce=NONCE)
        with pytest.raises(EnvelopeError):
            unwrap_key(other, blob, CONTEXT)


@given(blob=st.binary(max_size=300) | st.binary(max_size=200).map(lambda tail: b"\x01" + tail), text=st.text())
def test_unwrapping_anything_raises_envelope_errors_only(blob: bytes, text: str) -> None:
    """No input makes another error escape (fuzz)."""
    with SecretKey.random() as wrapping, pytest.raises(EnvelopeError):
        unwrap_key(wrapping, blob, replace(CONTEXT, component=text))


def test_a_context_without_encoding_is_refused() -> None:
    """A lone surrogate has no UTF-8 form and is no context."""
    with SecretKey.random() as wrapping, pytest.raises(EnvelopeError, match="not text"):
        unwrap_key(wrapping, b"\x01" + bytes(60), replace(CONTEXT, vm_id="\ud800"))


def test_misuse_of_wrapping_is_refused() -> None:
    """A wrapping key of 16 bytes or a nonce of 8 is a mistake of the caller."""
    with SecretKey.random(16) as short, SecretKey.random() as wrapping, SecretKey.random() as key:
        with pytest.raises(ValueError, match="32 bytes"):
            wrap_key(short, key, CONTEXT, nonce=NONCE)
        with pytest.raises(ValueError, match="32 bytes"):
            unwrap_key(short, bytes(61), CONTEXT)
        with pytest.raises(ValueError, match="12 bytes"):
            wrap_key(wrapping, key, CONTEXT, nonce=bytes(8))


def test_every_label_and_salt_gives_another_key() -> None:
    """Keys derived for different uses have nothing in common."""
    with SecretKey.random() as key:
        derived = [
            derive_key(key, "vtpm-state"),
            derive_key(key, "luks-passphrase"),
            derive_key(key, "file/nvram"),
            derive_key(key, "vtpm-state", salt=b"salt"),
        ]
        assert len({bytes(each.view()) for each in derived}) == len(derived)
        assert derive_key(key, "vtpm-state").matches(derived[0])
        assert len(derive_key(key, "disk", size=64)) == 64


@pytest.mark.parametrize("label", ["", "Upper", "two words", "/", "a/", "-a", "a//b", "a\n"])
def test_malformed_labels_are_refused(label: str) -> None:
    """A label is lower-case words and slashes."""
    with SecretKey.random() as key, pytest.raises(ValueError, match="label"):
        derive_key(key, label)


def test_nothing_is_derived_from_a_short_key() -> None:
    """Fewer than 16 bytes are no key to derive from."""
    with SecretKey.random(15) as key, pytest.raises(ValueError, match="16 or more"):
        derive_key(key, "disk")


@pytest.mark.parametrize(("kem", "size"), [(HpkeKem.X25519, 80), (HpkeKem.MLKEM768_X25519, 1168)])
def test_a_sealed_key_opens_for_its_holder(kem: HpkeKem, size: int) -> None:
    """The holder of the private key gets the key, and the sealed form has the documented size."""
    holder = SealingKey.generate(kem)
    assert len(holder.public_bytes) == PUBLIC_SIZES[kem]
    with SecretKey.random() as key:
        sealed = seal_key(kem, holder.public_bytes, key, INFO)
        assert len(sealed) == size
        with holder.open(sealed, INFO) as opened:
            assert opened.matches(key)


def _other_holder(kem: HpkeKem, sealed: bytes) -> None:
    SealingKey.generate(kem).open(sealed, INFO)


def _one_byte_less(kem: HpkeKem, sealed: bytes) -> None:
    holder = SealingKey.generate(kem)
    with SecretKey.random() as key:
        holder.open(seal_key(kem, holder.public_bytes, key, INFO)[:-1], INFO)


def _other_info(kem: HpkeKem, sealed: bytes) -> None:
    holder = SealingKey.generate(kem)
    with SecretKey.random() as key:
        holder.open(seal_key(kem, holder.public_bytes, key, INFO), INFO + b"!")


@pytest.mark.parametrize("kem", list(HpkeKem))
@pytest.mark.parametrize("attempt", [_other_holder, _one_byte_less, _other_info])
def test_a_sealed_key_opens_for_nobody_and_nothing_else(
    kem: HpkeKem, attempt: Callable[[HpkeKem, bytes], None]
) -> None:
    """Another holder, a cut seal and another purpose are refused."""
    with SecretKey.random() as key:
        sealed = seal_key(kem, SealingKey.generate(kem).public_bytes, key, INFO)
    with pytest.raises(EnvelopeError, match="not sealed to this key for this use"):
        attempt(kem, sealed)


@pytest.mark.parametrize("kem", list(HpkeKem))
@given(sealed=st.binary(max_size=1300))
def test_opening_anything_raises_envelope_errors_only(kem: HpkeKem, sealed: bytes) -> None:
    """No sealed input makes another error escape (fuzz)."""
    with pytest.raises(EnvelopeError):
        _HOLDERS[kem].open(sealed, INFO)


_HOLDERS = {kem: SealingKey.generate(kem) for kem in HpkeKem}


@pytest.mark.parametrize("kem", list(HpkeKem))
def test_public_keys_that_are_none_are_refused(kem: HpkeKem) -> None:
    """Wrong lengths and points of low order are not sealed to."""
    with SecretKey.random() as key:
        for public in (b"", bytes(31), os.urandom(PUBLIC_SIZES[kem] + 1), bytes(PUBLIC_SIZES[kem])):
            with pytest.raises(EnvelopeError, match="public key"):
                seal_key(kem, public, key, INFO)


def test_the_release_info_covers_every_field() -> None:
    """Changing any field of a release changes what its key is sealed for (B-19)."""
    fields = {
        name: f"{name}-value" for name in ("token_id", "provider", "key_reference", "vm_id", "component", "host_id")
    }
    base = release_info(**fields, request_hash=bytes(32))
    for name in fields:
        assert release_info(**{**fields, name: "other"}, request_hash=bytes(32)) != base
    assert release_info(**fields, request_hash=bytes(31) + b"\x01") != base
    with pytest.raises(ValueError, match="32 bytes"):
        release_info(**fields, request_hash=b"")


def test_the_request_hash_covers_every_field() -> None:
    """Changing any field of a request changes its hash."""
    names = ("operation", "token", "grant", "provider", "vm_id", "component", "key_reference")
    fields = {name: f"{name}-value" for name in names}
    base = release_request_hash(**fields, wrapped_key=b"blob")
    assert len(base) == 32
    for name in names:
        assert release_request_hash(**{**fields, name: "other"}, wrapped_key=b"blob") != base
    assert release_request_hash(**fields, wrapped_key=b"") != base
