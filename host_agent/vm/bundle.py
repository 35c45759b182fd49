"""The bundle of a VM: a directory that holds all of it, as ``docs/vm-bundle.md`` specifies.

``bundle.json`` (clear), ``home.sealed`` (or ``home.json`` where the VM is not encrypted), ``nvram.qcow2``,
``disk-NAME.qcow2``, ``vtpm/``. What was changed, torn, or exchanged for another VM's is refused; nothing is touched.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from host_agent.errors import BundleError, BundleReason, StorageError
from host_agent.vm.bundle_format import (
    MOST_BYTES,
    ComponentKey,
    Disk,
    Home,
    Manifest,
    encode,
    parse_home,
    parse_manifest,
)
from host_agent.vm.durable import sync, write_durably
from host_agent.vm.keys import KeySource, open_component_key
from host_agent.vm.model import HOME
from keyprovider.envelope import decrypt_stream, encrypt_stream
from keyprovider.errors import EnvelopeError
from keyprovider.keymaterial import SecretKey

HOME_LABEL: Final = "home"
"""Label of the sealed home among encrypted files."""
_SALT_SIZE: Final = 32
_SEALED_OVERHEAD: Final = 64


@dataclass(frozen=True, slots=True)
class OpenHome:
    """A home that was opened, with what is needed to open the rest."""

    home: Home
    dek: SecretKey | None
    """The home's DEK; None where the VM is not encrypted. The caller closes it."""


class Bundle:
    """The files of one VM. Knows where they are; keeps nothing of what is in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """The directory."""
        self.manifest = path / "bundle.json"
        """What can be read without a key."""
        self.sealed_home = path / "home.sealed"
        """The home, encrypted."""
        self.clear_home = path / "home.json"
        """The home, in clear."""
        self.nvram = path / "nvram.qcow2"
        """The firmware's variables."""
        self.vtpm = path / "vtpm"
        """Directory of the vTPM's state."""

    def disk(self, disk: Disk) -> Path:
        """Where a disk lies."""
        return self.path / disk.file

    def read_manifest(self, vm_id: str) -> Manifest:
        """Read what can be read without a key.

        Args:
            vm_id: Whose bundle it must be.

        Raises:
            BundleError: MISSING, MALFORMED, UNKNOWN_VERSION, OTHER_VM.
        """
        manifest = parse_manifest(_read(self.manifest, MOST_BYTES))
        if manifest.vm_id != vm_id:
            raise BundleError(
                BundleReason.OTHER_VM, f"{self.manifest} is of VM {manifest.vm_id}, it lies where VM {vm_id} should be"
            )
        return manifest

    def open(self, vm_id: str, keys: KeySource | None) -> OpenHome:
        """Open the home.

        Args:
            vm_id: Whose bundle it must be.
            keys: Where the KEKs come from; None for a VM that is not encrypted.

        Raises:
            BundleError: As ``read_manifest``; WRONG_PROVIDER: it is encrypted and ``keys`` is None or another
                provider's, or it is in clear and ``keys`` is not None; WRONG_KEY: changed, or another VM's;
                GENERATION_MISMATCH: manifest and home are not of one moment.
            Exception: What the key source raises.
        """
        manifest = self.read_manifest(vm_id)
        if (manifest.home_key is None) != (keys is None):
            stands, asked = ("encrypted", "without a key provider") if keys is None else ("in clear", "as encrypted")
            raise BundleError(BundleReason.WRONG_PROVIDER, f"VM {vm_id} is {stands}, and was to be opened {asked}")
        if manifest.home_key is None or keys is None:
            return OpenHome(_checked(manifest, parse_home(_read(self.clear_home, MOST_BYTES))), None)
        sealed = _read(self.sealed_home, MOST_BYTES + _SEALED_OVERHEAD)
        dek = open_component_key(keys, manifest.home_key, vm_id, HOME)
        try:
            plain = io.BytesIO()
            decrypt_stream(dek, io.BytesIO(sealed), plain, label=HOME_LABEL)
            return OpenHome(_checked(manifest, parse_home(plain.getvalue())), dek)
        except EnvelopeError as exc:
            dek.close()
            raise BundleError(
                BundleReason.WRONG_KEY,
                f"{self.sealed_home} does not open with this VM's key: it was changed or cut short, or is another VM's",
            ) from exc
        except BaseException:
            dek.close()
            raise

    def write(self, home: Home, home_key: ComponentKey | None, dek: SecretKey | None) -> None:
        """Write home and manifest, each whole or not at all; the manifest last.

        Raises:
            ValueError: One of ``home_key`` and ``dek`` is None and the other is not.
            OSError: As the file system gives it.
        """
        if (home_key is None) != (dek is None):
            raise ValueError("a home is sealed with a key that is kept beside it, or in clear")
        content = encode(home)
        if dek is None:
            write_durably(self.clear_home, content)
        else:
            sealed = io.BytesIO()
            encrypt_stream(dek, io.BytesIO(content), sealed, label=HOME_LABEL, salt=os.urandom(_SALT_SIZE))
            write_durably(self.sealed_home, sealed.getvalue())
        manifest = Manifest(vm_id=home.vm_id, generation=home.generation, home_key=home_key)
        write_durably(self.manifest, encode(manifest))

    def sync(self) -> None:
        """Make the directory's and the vTPM directory's entries durable.

        Raises:
            OSError: As the file system gives it.
        """
        if self.vtpm.is_dir():
            sync(self.vtpm)
        sync(self.path)


def _checked(manifest: Manifest, home: Home) -> Home:
    if home.vm_id != manifest.vm_id:
        raise BundleError(BundleReason.OTHER_VM, f"the home is of VM {home.vm_id}, the manifest of {manifest.vm_id}")
    if home.generation != manifest.generation:
        raise BundleError(
            BundleReason.GENERATION_MISMATCH,
            f"the home has generation {home.generation}, the manifest {manifest.generation}: one of them was exchanged",
        )
    keyed = home.vtpm_key is not None or any(disk.key is not None for disk in home.disks)
    if keyed and manifest.home_key is None:
        raise BundleError(BundleReason.MALFORMED, "a home in clear names keys")
    return home


def _read(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise BundleError(BundleReason.MISSING, f"there is no {path.name} in {path.parent}") from exc
    except OSError as exc:
        raise StorageError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(content) > most:
        raise BundleError(BundleReason.MALFORMED, f"{path} has more than {most} bytes")
    return content
