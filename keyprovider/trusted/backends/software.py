"""Primary keys in a file of this service, encrypted under a storage key: for trying out, not for production.

Whoever copies the file *and* the key file has every key of every VM; an HSM or a key server would not hand them over.
Format: ``backends.software_format``. Several processes may share the file: it is changed under a lock, by writing a new
one and renaming it, and read again where a key is not found.

Serves the port ``PrimaryKeyBackend``.
"""

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from keyprovider.envelope import WrapContext, unwrap_key, wrap_key
from keyprovider.envelope.wrap import NONCE_SIZE
from keyprovider.errors import BackendError
from keyprovider.keymaterial import SecretKey
from keyprovider.storage_key import read_storage_key
from keyprovider.trusted.backends.software_format import (
    SALT_SIZE,
    PrimaryKeyFile,
    decode_primary_keys,
    storage_context,
    storage_key,
)

WARNING = (
    "primary keys are held by SOFTWARE: whoever copies the primary key file and the storage key has all keys;"
    " use an HSM or a key server in production"
)


class SoftwareBackend:
    """Primary keys in a file."""

    def __init__(self, file: Path, key_file: Path) -> None:
        """Open the file, which is made with the first key.

        Args:
            file: Holds the wrapped primary keys.
            key_file: 32 random bytes, mode 0600.

        Raises:
            BackendError: The key file is missing, of another size, or readable by others; or the file does not open.
        """
        self._file = file
        self._key = read_storage_key(key_file)
        self._lock = threading.Lock()
        self._keys: dict[tuple[str, int], SecretKey] = {}
        self._load()

    def ensure(self, provider: str) -> int:
        """See ``PrimaryKeyBackend.ensure``."""
        with self._lock, self._exclusive():
            self._load()
            newest = max((version for name, version in self._keys if name == provider), default=0)
            if newest:
                return newest
            self._add(provider, 1)
            return 1

    def add_version(self, provider: str, version: int) -> None:
        """See ``PrimaryKeyBackend.add_version``."""
        with self._lock, self._exclusive():
            self._load()
            if (provider, version) in self._keys:
                return
            if (provider, version - 1) not in self._keys:
                raise BackendError(f"provider {provider!r} has no primary key of version {version - 1}")
            self._add(provider, version)

    def wrap(self, provider: str, version: int, key: SecretKey, context: WrapContext) -> bytes:
        """See ``PrimaryKeyBackend.wrap``."""
        return wrap_key(self._find(provider, version), key, context, nonce=os.urandom(NONCE_SIZE))

    def unwrap(self, provider: str, version: int, blob: bytes, context: WrapContext) -> SecretKey:
        """See ``PrimaryKeyBackend.unwrap``."""
        return unwrap_key(self._find(provider, version), blob, context)

    def close(self) -> None:
        """Forget all keys."""
        with self._lock:
            for key in (*self._keys.values(), self._key):
                key.close()
            self._keys = {}

    def _find(self, provider: str, version: int) -> SecretKey:
        key = self._keys.get((provider, version))
        if key is None:
            with self._lock:
                self._load()  # another process may have made it
            key = self._keys.get((provider, version))
        if key is None:
            raise BackendError(f"provider {provider!r} has no primary key of version {version}")
        return key

    def _load(self) -> None:
        try:
            content = self._file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as exc:
            raise BackendError(f"cannot read {self._file}: {exc.strerror}") from exc
        for name, key in decode_primary_keys(content, self._key).items():
            # Keys in use stay: another thread may be wrapping by them.
            if name in self._keys:
                key.close()
            else:
                self._keys[name] = key

    def _add(self, provider: str, version: int) -> None:
        try:
            old = PrimaryKeyFile.decode(self._file.read_bytes())
        except FileNotFoundError:
            old = PrimaryKeyFile(os.urandom(SALT_SIZE), {})
        key = SecretKey.random()
        with storage_key(self._key, old.salt) as storage:
            nonce = os.urandom(NONCE_SIZE)
            blob = wrap_key(storage, key, storage_context(provider, version), nonce=nonce)
        new = PrimaryKeyFile(old.salt, {**old.wrapped, (provider, version): blob})
        try:
            _replace(self._file, new.encode())
        except OSError as exc:
            key.close()
            raise BackendError(f"cannot write {self._file}: {exc.strerror}") from exc
        self._keys[provider, version] = key

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        lock = self._file.with_name(self._file.name + ".lock")
        try:
            descriptor = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise BackendError(f"cannot lock {lock}: {exc.strerror}") from exc
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _replace(path: Path, content: bytes) -> None:
    """Write, sync and rename: after a crash there is the old file or the new one."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
