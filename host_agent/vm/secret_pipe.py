"""Hand a passphrase to a child through a pipe: it is in no argument, environment or file."""

import contextlib
import os
from collections.abc import Iterator

from keyprovider.keymaterial import SecretKey


@contextlib.contextmanager
def secret_pipe(passphrase: SecretKey) -> Iterator[int]:
    """Give a descriptor from which the passphrase can be read once, to its end; closed here at the end.

    The child opens it as ``/proc/self/fd/N`` (``/dev/fd`` need not exist).
    """
    reader, writer = os.pipe()
    try:
        try:
            # At most 128 bytes: fits into the pipe, so this never blocks.
            os.write(writer, passphrase.view())
        finally:
            os.close(writer)
        yield reader
    finally:
        os.close(reader)
