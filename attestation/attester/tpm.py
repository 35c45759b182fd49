"""The TPM of this host: endorsement key, attestation key, credential activation, quotes, PCRs, clock.

Written for a TPM without a resource manager (3 transient objects, 3 sessions, handles that survive their user):
whatever is loaded is flushed in ``finally``, and left-overs are swept at the start. The TPM is meant to have one user.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_DATA,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPML_DIGEST_VALUES,
    TPMT_HA,
    TPMU_HA,
    TSS2_Exception,
)

from attestation.attester import tss_log
from attestation.attester.endorsement import (
    ISSUING_CHAIN_FIRST,
    ISSUING_CHAIN_LAST,
    PROFILES,
    EndorsementProfile,
    split_certificates,
)
from attestation.attester.keys import (
    attestation_template,
    endorsement_authorisation,
    endorsement_template,
    is_endorsement_primary,
    loaded_persistent,
    loaded_primary,
    marshal_public,
    same_template,
)
from attestation.attester.nv import list_handles, read_nv
from attestation.attester.owner import OwnerThread
from attestation.attester.pcrs import checked_pcrs, pcr_digest, read_pcrs, selection
from attestation.errors import TpmError
from attestation.model import BootIdentity, EkTemplate, PcrBank

T = TypeVar("T")

DEFAULT_TIMEOUT_SECONDS = 60.0
"""For one operation; an RSA endorsement key can take a hardware TPM half of that."""

_QUOTE_ATTEMPTS = 8
_SESSIONS_FIRST = 0x02000000
_TRANSIENT_FIRST = 0x80000000
_LAYER_MASK = 0xFF0000
_ANSWERING_LAYERS = (0, 11 << 16, 12 << 16)
"""TSS2 response code layers of the TPM and of resource managers (TCG TSS 2.0 Overview, 2.4)."""

_BANK_ALGORITHMS = {PcrBank.SHA256: TPM2_ALG.SHA256, PcrBank.SHA384: TPM2_ALG.SHA384}


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """Endorsement key as the enrolment sends it."""

    template: EkTemplate
    public: bytes
    """TPMT_PUBLIC, marshalled."""
    certificate: bytes | None
    """DER, from NV; None if the TPM has none for this template."""
    intermediates: tuple[bytes, ...]
    """DER certificates of issuing CAs that the TPM carries; nobody has checked them."""


@dataclass(frozen=True, slots=True)
class Quote:
    """Quote and the PCR values that it is over."""

    attest: bytes
    """TPMS_ATTEST, exactly the signed bytes."""
    signature: bytes
    """TPMT_SIGNATURE, marshalled."""
    pcr_values: tuple[tuple[int, bytes], ...]
    """(PCR, value), PCRs ascending."""


@dataclass(frozen=True, slots=True)
class ClockReading:
    """TPMS_TIME_INFO (TPM 2.0 Part 2, 10.11.6)."""

    boot: BootIdentity
    clock_ms: int
    """Time the TPM was powered, over all boots."""
    time_ms: int
    """Time since the TPM was powered on."""
    safe: bool
    """Whether no higher clock was reported before; False for some seconds after an unclean restart."""


class Tpm:
    """A TPM 2.0, owned by one thread; methods may be called from any."""

    def __init__(
        self, tcti: str, *, template: EkTemplate | None, ak_handle: int | None, timeout_seconds: float
    ) -> None:
        """Use ``open``."""
        self._tcti = tcti
        self._forced_template = template
        self._ak_handle = ak_handle
        self._owner = OwnerThread("tpm-owner", timeout_seconds)
        self._esapi: ESAPI | None = None
        self._profile: EndorsementProfile | None = None

    @classmethod
    def open(
        cls,
        tcti: str,
        *,
        template: EkTemplate | None = None,
        ak_handle: int | None = None,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ) -> Self:
        """Connect to a TPM and flush what earlier users left loaded.

        Args:
            tcti: As tpm2-tss names it: ``swtpm:path=/run/tpm.sock``, ``device:/dev/tpmrm0``.
            template: Endorsement key to use; by default the first of ``PROFILES`` that has a certificate, and
                RSA-2048 of the low range, which every TPM has, if none has.
            ak_handle: Persistent handle (0x81010000 to 0x8101FFFF) to keep the attestation key at; by default it is
                made anew for each use, which a hardware TPM takes a tenth of a second for.
            timeout_seconds: Limit for each operation, so that a hung TPM hangs nobody.

        Raises:
            TpmError: The TPM cannot be reached.
        """
        tss_log.silence()
        tpm = cls(tcti, template=template, ak_handle=ak_handle, timeout_seconds=timeout_seconds)
        try:
            tpm._owner.call(tpm._connect)
        except BaseException:
            tpm._owner.close()
            raise
        return tpm

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect; closing twice does nothing."""
        with contextlib.suppress(TpmError):
            self._owner.call(self._disconnect)
        self._owner.close()

    def endorsement_key(self) -> EndorsementKey:
        """Read the endorsement key and its certificates.

        Raises:
            TpmError: The TPM refused or did not answer.
        """

        def read(esapi: ESAPI) -> EndorsementKey:
            profile = self._endorsement_profile(esapi)
            certificate = read_nv(esapi, profile.certificate_index)
            with self._loaded_ek(esapi, profile) as (_, public):
                area = marshal_public(public)
            chain = b"".join(
                read_nv(esapi, index) or b""
                for index in list_handles(esapi, ISSUING_CHAIN_FIRST)
                if index <= ISSUING_CHAIN_LAST
            )
            # Some vendors pad the index: what follows the certificate is not part of it.
            first = split_certificates(certificate or b"")[:1]
            return EndorsementKey(profile.template, area, first[0] if first else None, split_certificates(chain))

        return self._run("endorsement key", read)

    def attestation_key(self) -> bytes:
        """Make the attestation key, or find it, and return its TPMT_PUBLIC.

        It is a restricted ECDSA P-256 / SHA-256 signing key, primary in the *endorsement* hierarchy: only there a
        quote carries the true resetCount and restartCount (TPM 2.0 Part 1, 36.7). The same TPM always makes the same.

        Raises:
            TpmError: The TPM refused or did not answer, or the persistent handle holds another key.
        """

        def read(esapi: ESAPI) -> bytes:
            with self._loaded_ak(esapi) as (_, public):
                return marshal_public(public)

        return self._run("attestation key", read)

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential made for this TPM's endorsement and attestation key.

        Args:
            credential_blob: Content of TPM2B_ID_OBJECT, without its size.
            encrypted_secret: Content of TPM2B_ENCRYPTED_SECRET, without its size.

        Returns:
            The credential: a secret. Send a MAC under it, never itself.

        Raises:
            TpmError: The TPM refused: the credential is for another endorsement or attestation key, or damaged.

        Source: TPM 2.0 Part 3, 12.5; authorisation of the key as EK Credential Profile, annex B.
        """
        try:
            blob = TPM2B_ID_OBJECT(credential=credential_blob)
            secret = TPM2B_ENCRYPTED_SECRET(secret=encrypted_secret)
        except IndexError as exc:
            raise TpmError("credential activation: the credential is larger than any TPM makes") from exc

        def activate(esapi: ESAPI) -> bytes:
            profile = self._endorsement_profile(esapi)
            with (
                self._loaded_ak(esapi) as (ak, _),
                self._loaded_ek(esapi, profile) as (ek, _),
                endorsement_authorisation(esapi, profile) as session,
            ):
                return bytes(esapi.activate_credential(ak, ek, blob, secret, ESYS_TR.PASSWORD, session))

        return self._run("credential activation", activate)

    def quote(self, extra_data: bytes, bank: PcrBank, pcrs: tuple[int, ...]) -> Quote:
        """Quote PCRs, and read their values so that quote and values agree.

        Args:
            extra_data: At most 64 bytes; 32 in this product (``attestation.binding``).
            bank: Bank to quote.
            pcrs: PCRs to quote, 0 to 23, at least one.

        Raises:
            TpmError: The TPM refused or did not answer; the bank is not allocated; PCRs kept changing.
            ValueError: The PCRs or the extra data are out of range.
        """
        selected = checked_pcrs(pcrs)
        if len(extra_data) > 64:
            raise ValueError("extra data has at most 64 bytes")

        def take(esapi: ESAPI) -> Quote:
            with self._loaded_ak(esapi) as (ak, _):
                for _attempt in range(_QUOTE_ATTEMPTS):
                    attest, signature = esapi.quote(ak, selection(bank, selected), TPM2B_DATA(extra_data))
                    signed = bytes(attest)
                    values = read_pcrs(esapi, bank, selected)
                    # The quote is the truth: a PCR that moved between the two commands shows here.
                    if pcr_digest(signed) == hashlib.sha256(b"".join(value for _, value in values)).digest():
                        return Quote(signed, signature.marshal(), values)
            raise TpmError(f"PCRs changed during each of {_QUOTE_ATTEMPTS} quotes")

        return self._run("quote", take)

    def read_pcrs(self, bank: PcrBank, pcrs: tuple[int, ...]) -> tuple[tuple[int, bytes], ...]:
        """Read PCRs: (PCR, value), ascending. A read of more than 8 is not atomic; a quote is.

        Raises:
            TpmError: The TPM refused or did not answer, or the bank is not allocated.
            ValueError: The PCRs are out of range.
        """
        selected = checked_pcrs(pcrs)
        return self._run("PCR read", lambda esapi: read_pcrs(esapi, bank, selected))

    def extend(self, pcr: int, digests: Mapping[PcrBank, bytes]) -> None:
        """Extend a PCR in the banks given; other banks stay as they are.

        Raises:
            TpmError: The TPM refused or did not answer.
            ValueError: The PCR is out of range, or a digest has the wrong length.
        """
        (index,) = checked_pcrs((pcr,))
        if any(len(digest) != bank.digest_size for bank, digest in digests.items()):
            raise ValueError("a digest has the length of its bank")
        values = TPML_DIGEST_VALUES(
            digests=[
                TPMT_HA(hashAlg=_BANK_ALGORITHMS[bank], digest=TPMU_HA(**{bank.value: digest}))
                for bank, digest in digests.items()
            ]
        )
        self._run(f"extend PCR {index}", lambda esapi: esapi.pcr_extend(ESYS_TR(index), values))

    def clock(self) -> ClockReading:
        """Read clock and boot counters.

        Raises:
            TpmError: The TPM refused or did not answer.
        """

        def read(esapi: ESAPI) -> ClockReading:
            # Fields of a temporary are freed with it: each parent is kept.
            info = esapi.read_clock()
            clock = info.clockInfo
            boot = BootIdentity(int(clock.resetCount), int(clock.restartCount))
            return ClockReading(boot, int(clock.clock), int(info.time), bool(clock.safe))

        return self._run("clock", read)

    def _run(self, what: str, command: Callable[[ESAPI], T]) -> T:
        def run() -> T:
            try:
                return command(self._esapi or self._connect())
            except TSS2_Exception as exc:
                # A context that lost its TPM refuses everything from then on: the next call makes a new one.
                if not _is_answer(exc):
                    self._disconnect()
                raise TpmError(f"{what}: {exc}") from exc

        return self._owner.call(run)

    def _connect(self) -> ESAPI:
        try:
            esapi = ESAPI(self._tcti)
        except (TSS2_Exception, RuntimeError) as exc:
            raise TpmError(f"cannot reach a TPM at {self._tcti}: {exc}") from exc
        try:
            for first in (_TRANSIENT_FIRST, _SESSIONS_FIRST):
                for handle in list_handles(esapi, first):
                    esapi.flush_context(esapi.tr_from_tpmpublic(handle))
        except TSS2_Exception as exc:
            esapi.close()
            raise TpmError(f"the TPM at {self._tcti} does not answer: {exc}") from exc
        self._esapi = esapi
        return esapi

    def _disconnect(self) -> None:
        esapi, self._esapi = self._esapi, None
        if esapi is not None:
            esapi.close()

    def _endorsement_profile(self, esapi: ESAPI) -> EndorsementProfile:
        if self._profile is None:
            if self._forced_template is not None:
                self._profile = PROFILES[self._forced_template]
            else:
                defined = list_handles(esapi, min(profile.certificate_index for profile in PROFILES.values()))
                self._profile = next(
                    (profile for profile in PROFILES.values() if profile.certificate_index in defined),
                    PROFILES[EkTemplate.RSA_2048_LOW],
                )
        return self._profile

    @contextlib.contextmanager
    def _loaded_ek(self, esapi: ESAPI, profile: EndorsementProfile) -> Iterator[tuple[ESYS_TR, TPM2B_PUBLIC]]:
        template = endorsement_template(esapi, profile)
        with loaded_persistent(esapi, profile.persistent_handle) as found:
            if found is not None and same_template(found[1], template):
                yield found
                return
        with loaded_primary(esapi, template) as made:
            yield made

    @contextlib.contextmanager
    def _loaded_ak(self, esapi: ESAPI) -> Iterator[tuple[ESYS_TR, TPM2B_PUBLIC]]:
        template = attestation_template()
        if self._ak_handle is None:
            with loaded_primary(esapi, template) as made:
                yield made
            return
        if self._ak_handle not in list_handles(esapi, self._ak_handle):
            with loaded_primary(esapi, template) as (handle, _):
                esapi.tr_close(esapi.evict_control(ESYS_TR.OWNER, handle, self._ak_handle))
        with loaded_persistent(esapi, self._ak_handle) as found:
            if found is None or not same_template(found[1], template) or not is_endorsement_primary(esapi, found[0]):
                raise TpmError(f"persistent handle {self._ak_handle:#x} holds a key that is not an attestation key")
            yield found


def _is_answer(exc: TSS2_Exception) -> bool:
    """Whether an error is the TPM's own (or its resource manager's), not one of the way to it."""
    return (int(exc.rc) & _LAYER_MASK) in _ANSWERING_LAYERS
