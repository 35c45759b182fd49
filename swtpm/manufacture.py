"""Manufacture software TPMs: endorsement keys, their certificates, PCR banks; encrypted from the first byte.

The result equals what ``swtpm_setup --create-ek-cert`` makes (TCG EK Credential Profile, templates L-1 and H-3), some
ten times faster, with the certificates signed by whoever the caller chooses. The TPM is made in a directory beside
its final place and appears there whole or not at all.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPML_PCR_SELECTION,
    TPMS_NV_PUBLIC,
    TPMS_PCR_SELECTION,
    PyTCTI,
    TSS2_Exception,
)

from attestation.attester import tss_log
from attestation.attester.endorsement import PROFILES, EndorsementProfile
from attestation.model import EkTemplate
from swtpm.control import ControlChannel
from swtpm.ek_certificate import EkPublicKey
from swtpm.errors import ControlError, ManufactureError, ProcessError, StateError, StateReason, SwtpmError
from swtpm.process import SHUTDOWN_CLEAR, STARTUP_CLEAR, check_state, transact
from swtpm.spawn import Endpoint, Lifetime, spawn
from swtpm.state import STATE_FILE, Key

DEFAULT_TEMPLATES = (EkTemplate.RSA_2048_LOW, EkTemplate.ECC_P384_HIGH)
_ALL_BANKS = {
    "sha1": TPM2_ALG.SHA1,
    "sha256": TPM2_ALG.SHA256,
    "sha384": TPM2_ALG.SHA384,
    "sha512": TPM2_ALG.SHA512,
}
_TIMEOUT_SECONDS = 30.0
_NV_CHUNK = 1024
"""TPM_PT_NV_BUFFER_MAX of libtpms."""
_CERTIFICATE_ATTRIBUTES = (
    TPMA_NV.PPWRITE
    | TPMA_NV.WRITEDEFINE
    | TPMA_NV.PPREAD
    | TPMA_NV.OWNERREAD
    | TPMA_NV.AUTHREAD
    | TPMA_NV.NO_DA
    | TPMA_NV.PLATFORMCREATE
)
"""0x42072001, as swtpm_setup defines them: only the platform can write, everybody can read."""


@dataclass(frozen=True, slots=True)
class EndorsementPublic:
    """Public half of an endorsement key, as an authority certifies it."""

    template: EkTemplate
    public: bytes
    """TPMT_PUBLIC, marshalled."""
    key: EkPublicKey


@dataclass(frozen=True, slots=True)
class Manufactured:
    """A TPM that was made."""

    endorsement_keys: tuple[EndorsementPublic, ...]
    certificates: tuple[bytes, ...]
    """DER, in the order of ``endorsement_keys``; empty if nobody certified."""


def manufacture(
    state_dir: Path,
    *,
    key: Key | None,
    certify: Callable[[EndorsementPublic], bytes] | None = None,
    banks: tuple[str, ...] = ("sha256",),
    templates: tuple[EkTemplate, ...] = DEFAULT_TEMPLATES,
) -> Manufactured:
    """Make a TPM whose state lies in ``state_dir``.

    Args:
        state_dir: Its directory; made with mode 0700 if it is not there.
        key: 32 bytes of the state key; None leaves the state in clear on the disk.
        certify: Gets each endorsement key and returns its certificate (DER), which goes into NV.
        banks: PCR banks to have: ``sha1``, ``sha256``, ``sha384``, ``sha512``; at least one.
        templates: Endorsement keys to make and keep at their persistent handles.

    Returns:
        The endorsement keys and certificates, also when the TPM itself stays off.

    Raises:
        ValueError: A bank has no such name, or there is none.
        StateError: ALREADY_EXISTS: the directory holds the state of a TPM, or another call has just made one.
        SwtpmUnavailable: swtpm is not installed.
        ManufactureError: swtpm or the TPM refused; nothing is left behind. What ``certify`` raises passes as it is.
    """
    if not banks or not set(banks) <= set(_ALL_BANKS):
        raise ValueError(f"PCR banks are of {', '.join(_ALL_BANKS)}, and at least one")
    if (state_dir / STATE_FILE).exists():
        raise StateError(StateReason.ALREADY_EXISTS, f"{state_dir} already holds a TPM")
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # On the same file system as its final place.
    making = Path(tempfile.mkdtemp(prefix=".manufacture-", dir=state_dir))
    try:
        with _new_tpm(making, key) as esapi:
            keys = tuple(_make_endorsement_key(esapi, PROFILES[template]) for template in templates)
            certificates = tuple(certify(public) for public in keys) if certify else ()
            for template, certificate in zip(templates, certificates, strict=False):
                _write_certificate(esapi, PROFILES[template].certificate_index, certificate)
            _allocate_banks(esapi, banks)
        check_state(making, key)
        _publish(making / STATE_FILE, state_dir / STATE_FILE)
    except TSS2_Exception as exc:
        raise ManufactureError(f"the new TPM refused: {exc}") from exc
    except (ControlError, ProcessError) as exc:
        raise ManufactureError(f"swtpm failed: {exc}") from exc
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return Manufactured(keys, certificates)


class _SocketTcti(PyTCTI):  # type: ignore[misc]
    """TPM commands over a connected socket."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def do_transmit(self, command: bytes) -> None:
        """Send one command."""
        self._connection.sendall(command)

    def do_receive(self, timeout: int) -> bytes:  # noqa: ARG002 - the signature is fixed
        """Receive one response; the socket's own timeout holds."""
        response = bytearray(self._read(10))
        return bytes(response + self._read(int.from_bytes(response[2:6], "big") - 10))

    def _read(self, length: int) -> bytes:
        received = self._connection.recv(length, socket.MSG_WAITALL) if length else b""
        if len(received) != length:
            raise ProcessError("swtpm closed the connection")
        return received


@contextlib.contextmanager
def _new_tpm(state_dir: Path, key: Key | None) -> Iterator[ESAPI]:
    """Run a new TPM, reachable through this process only; shut it down in good order at the end."""
    tss_log.silence()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    data, their_data = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, data:
        data.settimeout(_TIMEOUT_SECONDS)
        with theirs, their_data:
            endpoint = Endpoint(theirs, control_connected=True)
            spawned = spawn(state_dir, endpoint, key=key, log_path=None, lifetime=Lifetime.WITH_STARTER, terminate=True)
            try:
                control = ControlChannel(ours, _TIMEOUT_SECONDS)
                control.set_data_fd(their_data.fileno())
                control.init()
            except SwtpmError as exc:
                words = spawned.last_words()
                spawned.kill()
                raise ProcessError(f"{exc}; {words}") from exc
        try:
            transact(data, STARTUP_CLEAR)
            with ESAPI(_SocketTcti(data)) as esapi:
                yield esapi
            transact(data, SHUTDOWN_CLEAR)
            control.shutdown()
        finally:
            spawned.kill()


def _make_endorsement_key(esapi: ESAPI, profile: EndorsementProfile) -> EndorsementPublic:
    handle, public, _, _, _ = esapi.create_primary(
        TPM2B_SENSITIVE_CREATE(), profile.public_template(), ESYS_TR.ENDORSEMENT
    )
    try:
        esapi.tr_close(esapi.evict_control(ESYS_TR.OWNER, handle, profile.persistent_handle))
        area = public.publicArea
        key = load_der_public_key(public.to_der())
        if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            raise ManufactureError("the TPM made a key of an unknown kind")
        return EndorsementPublic(profile.template, bytes(area.marshal()), key)
    finally:
        esapi.flush_context(handle)


def _write_certificate(esapi: ESAPI, index: int, certificate: bytes) -> None:
    public = TPM2B_NV_PUBLIC(
        nvPublic=TPMS_NV_PUBLIC(
            nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_CERTIFICATE_ATTRIBUTES, dataSize=len(certificate)
        )
    )
    handle = esapi.nv_define_space(b"", public, ESYS_TR.PLATFORM)
    for offset in range(0, len(certificate), _NV_CHUNK):
        esapi.nv_write(handle, certificate[offset : offset + _NV_CHUNK], offset, ESYS_TR.PLATFORM)
    esapi.tr_close(handle)


def _allocate_banks(esapi: ESAPI, banks: tuple[str, ...]) -> None:
    """Give the chosen banks 24 PCRs and the others none, from the next power-on."""
    selections = [
        TPMS_PCR_SELECTION(
            hash=algorithm, sizeofSelect=3, pcrSelect=b"\xff\xff\xff" if name in banks else b"\x00\x00\x00"
        )
        for name, algorithm in _ALL_BANKS.items()
    ]
    success, _, needed, available = esapi.pcr_allocate(TPML_PCR_SELECTION(pcrSelections=selections))
    if not success:
        raise ManufactureError(f"the PCR banks need {needed} bytes, the TPM has {available}")


def _publish(made: Path, final: Path) -> None:
    """Move the finished state to its place, durably, and never over another TPM's."""
    _sync(made)
    try:
        os.link(made, final)
    except FileExistsError as exc:
        raise StateError(StateReason.ALREADY_EXISTS, f"{final.parent} already holds a TPM") from exc
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
