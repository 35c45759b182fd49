"""The storage key: 32 random bytes in a file of mode 0600, under which a service keeps its own keys at rest.

It protects a copy of the database or key file that was taken without it, and nothing more.
"""

import os
import stat
from pathlib import Path
from typing import Final

from keyprovider.errors import BackendError
from keyprovider.keymaterial import SecretKey

KEY_FILE_SIZE: Final = 32


def read_storage_key(path: Path) -> SecretKey:
    """Read the key from its file; the caller closes it.

    Raises:
        BackendError: The file is missing, of another size, or readable by others.
    """
    try:
        with path.open("rb", buffering=0) as file:
            mode = os.fstat(file.fileno()).st_mode
            buffer = bytearray(KEY_FILE_SIZE + 1)
            size = file.readinto(buffer)
    except OSError as exc:
        raise BackendError(f"cannot read the storage key {path}: {exc.strerror}") from exc
    if stat.S_IMODE(mode) & 0o077:
        raise BackendError(f"the storage key {path} has mode {stat.S_IMODE(mode):04o}; expected 0600 (chmod 600)")
    if size != KEY_FILE_SIZE:
        raise BackendError(f"the storage key {path} has not exactly {KEY_FILE_SIZE} bytes")
    del buffer[KEY_FILE_SIZE:]
    return SecretKey.adopt(buffer)
