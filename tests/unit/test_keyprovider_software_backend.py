"""Primary keys held by software."""

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyprovider.envelope import WrapContext, unwrap_key
from keyprovider.errors import BackendError, EnvelopeError
from keyprovider.keymaterial import SecretKey
from keyprovider.trusted.backends.software import SoftwareBackend
from keyprovider.trusted.backends.software_format import PrimaryKeyFile, decode_primary_keys
from keyprovider.trusted.wrapped_key import join_version, split_version

CONTEXT = WrapContext("gold", "0b0e7a5c-3c52-4f0b-9a51-6f2d8f3b1c11", "5f0d8a4e-0a5c-4f6e-8a3b-2f1e0d9c8b7a", "home")
STORAGE = bytes(range(100, 132))


def _backend(directory: Path) -> SoftwareBackend:
    key_file = directory / "storage.key"
    if not key_file.exists():
        key_file.touch(mode=0o600)
        key_file.write_bytes(STORAGE)
    return SoftwareBackend(directory / "primary-keys.json", key_file)


def test_what_a_primary_key_wrapped_opens_after_a_restart(tmp_path: Path) -> None:
    """The primary key survives the process that made it."""
    backend = _backend(tmp_path)
    assert backend.ensure("gold") == 1
    with SecretKey.random() as key:
        blob = backend.wrap("gold", 1, key, CONTEXT)
        backend.close()
        with _backend(tmp_path).unwrap("gold", 1, blob, CONTEXT) as opened:
            assert opened.matches(key)


def test_ensuring_again_changes_nothing(tmp_path: Path) -> None:
    """A provider's primary key is made once."""
    backend = _backend(tmp_path)
    backend.ensure("gold")
    before = (tmp_path / "primary-keys.json").read_bytes()
    assert backend.ensure("gold") == 1
    assert (tmp_path / "primary-keys.json").read_bytes() == before


def test_the_file_holds_no_key_in_clear(tmp_path: Path) -> None:
    """Neither primary key nor storage key is in the file, and it is for its owner only."""
    backend = _backend(tmp_path)
    backend.ensure("gold")
    file = tmp_path / "primary-keys.json"
    content = file.read_bytes()
    assert file.stat().st_mode & 0o077 == 0
    with SecretKey.adopt(STORAGE) as storage:
        ((name, primary),) = decode_primary_keys(content, storage).items()
    assert name == ("gold", 1)
    for secret in (bytes(primary.view()), STORAGE):
        assert secret not in content
        assert secret.hex().encode() not in content


def test_keys_can_be_recomputed_offline(tmp_path: Path) -> None:
    """A copy of both files opens a key that lies beside a VM, as the format says."""
    backend = _backend(tmp_path)
    backend.ensure("gold")
    with SecretKey.random() as key, SecretKey.adopt(STORAGE) as storage:
        wrapped = join_version(1, backend.wrap("gold", 1, key, CONTEXT))
        version, blob = split_version(wrapped)
        primaries = decode_primary_keys((tmp_path / "primary-keys.json").read_bytes(), storage)
        with unwrap_key(primaries["gold", version], blob, CONTEXT) as opened:
            assert opened.matches(key)


def test_two_processes_share_the_file(tmp_path: Path) -> None:
    """A key that another process made is found, and concurrent makers lose nothing."""
    first, second = _backend(tmp_path), _backend(tmp_path)
    names = [f"provider-{number}" for number in range(8)]
    makers = [
        threading.Thread(target=lambda backend=backend, name=name: backend.ensure(name))
        for number, name in enumerate(names)
        for backend in ((first, second) if number % 2 else (second,))
    ]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    with SecretKey.random() as key:
        for name in names:
            blob = first.wrap(name, 1, key, CONTEXT)
            with second.unwrap(name, 1, blob, CONTEXT) as opened:
                assert opened.matches(key)


def test_a_key_of_another_provider_or_version_is_refused(tmp_path: Path) -> None:
    """One provider's primary key does not open what another's wrapped; an unknown one is an error of its own."""
    backend = _backend(tmp_path)
    backend.ensure("gold")
    backend.ensure("silver")
    with SecretKey.random() as key:
        blob = backend.wrap("gold", 1, key, CONTEXT)
    with pytest.raises(EnvelopeError):
        backend.unwrap("silver", 1, blob, CONTEXT)
    with pytest.raises(BackendError, match="no primary key of version 2"):
        backend.unwrap("gold", 2, blob, CONTEXT)


def test_another_storage_key_does_not_open_the_file(tmp_path: Path) -> None:
    """With a wrong key file the backend does not start."""
    _backend(tmp_path).ensure("gold")
    (tmp_path / "storage.key").write_bytes(bytes(32))
    with pytest.raises(BackendError, match="does not open"):
        _backend(tmp_path)


def test_a_primary_key_does_not_open_under_another_name(tmp_path: Path) -> None:
    """Whoever writes to the file cannot give one provider's key to another."""
    _backend(tmp_path).ensure("gold")
    file = tmp_path / "primary-keys.json"
    file.write_bytes(file.read_bytes().replace(b'"gold"', b'"lead"'))
    with pytest.raises(BackendError, match="does not open"):
        _backend(tmp_path)


@pytest.mark.parametrize(
    ("content", "mode"), [(bytes(31), 0o600), (bytes(33), 0o600), (b"", 0o600), (bytes(32), 0o640)]
)
def test_a_careless_key_file_is_refused(tmp_path: Path, content: bytes, mode: int) -> None:
    """Exactly 32 bytes, for its owner only."""
    key_file = tmp_path / "storage.key"
    key_file.write_bytes(content)
    key_file.chmod(mode)
    with pytest.raises(BackendError, match="storage key"):
        SoftwareBackend(tmp_path / "primary-keys.json", key_file)


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    """No key file, no backend, and the message names the file."""
    with pytest.raises(BackendError, match=r"storage\.key"):
        SoftwareBackend(tmp_path / "primary-keys.json", tmp_path / "storage.key")


_KEYS_OF_NO_VERSION = (
    b'{"format": "garant/primary-keys/v1", "salt": "%s", "keys": [{"provider": "a", "version": %s, "wrapped": ""}]}'
)


@given(
    st.binary(max_size=100)
    | st.text(max_size=100).map(str.encode)
    | st.sampled_from([b"Infinity", b"1.5", b"0", b"true", b"null", b"4294967296", b"[]"]).map(
        lambda version: _KEYS_OF_NO_VERSION % (b"00" * 32, version)
    )
)
def test_decoding_anything_raises_backend_errors_only(content: bytes) -> None:
    """No content makes another error escape (fuzz)."""
    with pytest.raises(BackendError):
        PrimaryKeyFile.decode(content)


def test_the_file_format_round_trips() -> None:
    """What is encoded is decoded again."""
    file = PrimaryKeyFile(bytes(32), {("gold", 2): b"two", ("gold", 1): b"one"})
    assert PrimaryKeyFile.decode(file.encode()) == file


@pytest.mark.parametrize("wrapped", [b"", b"\x00\x00\x00\x01"])
def test_a_wrapped_key_without_content_is_refused(wrapped: bytes) -> None:
    """A version alone is no wrapped key."""
    with pytest.raises(EnvelopeError):
        split_version(wrapped)
