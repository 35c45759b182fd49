"""What the host agent needs from outside: a TPM, the trust authority, a key provider, a management server, a place.

Every method may take seconds. The errors named are the only ones that an adapter lets out.
"""

from collections.abc import Mapping
from typing import Protocol

from attestation.attester.tpm import EndorsementKey, Quote
from attestation.binding import QuoteBinding
from attestation.model import HostId, LogKind, PcrBank
from host_agent.model import (
    AttestedHost,
    Challenge,
    Credential,
    EnrollmentAnswer,
    EnrollmentClaim,
    Evidence,
    Granted,
    JoinClaim,
    ReleaseRequest,
    SealedNewKey,
)
from host_agent.vm.keys import KeySource
from host_agent.vm.model import Vm, VmSpec
from keyprovider.provider_list import ProviderEntry


class HostTpm(Protocol):
    """The TPM of this host. Every method may raise ``attestation.errors.TpmError``; the next call tries anew."""

    def endorsement_key(self) -> EndorsementKey:
        """Endorsement key and certificates."""

    def attestation_key(self) -> bytes:
        """TPMT_PUBLIC of the attestation key."""

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """Open a credential made for this TPM."""

    def quote(self, binding: QuoteBinding, bank: PcrBank, pcrs: tuple[int, ...]) -> Quote:
        """Quote PCRs, with the binding as extraData."""


class MeasurementLogs(Protocol):
    """The measurement logs of this boot."""

    def read(self, kinds: tuple[LogKind, ...]) -> Mapping[LogKind, bytes]:
        """The logs of these kinds that this host has; others are absent.

        Raises:
            EventLogUnreadable: A configured log cannot be read.
        """

    def command_line(self) -> str:
        """The kernel's command line, for people to read; empty where it is not known."""


class TrustAuthorityClient(Protocol):
    """The attestation service. Every method may raise ``PeerUnreachable`` and ``PeerRefused``."""

    def begin_enrollment(self, claim: EnrollmentClaim) -> Credential:
        """First half of enrolment."""

    def complete_enrollment(self, cookie: bytes, proof: bytes) -> EnrollmentAnswer:
        """Second half."""

    def create_challenge(self, host_id: HostId) -> Challenge:
        """Ask for a nonce."""

    def attest(self, evidence: Evidence) -> Granted:
        """Hand in evidence."""

    def close(self) -> None:
        """Let the connection go."""


class KeyRelease(Protocol):
    """Key providers. Every method may raise ``PeerUnreachable`` and ``PeerRefused``."""

    def create_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> SealedNewKey:
        """Have a new key made."""

    def unwrap_key(self, host: AttestedHost, provider: ProviderEntry, request: ReleaseRequest) -> bytes:
        """Have a key unwrapped; it comes sealed."""


class JoinServer(Protocol):
    """A management server's port for joining."""

    def join(self, claim: JoinClaim) -> tuple[bytes, bytes]:
        """Certificate and CA of the management server, both PEM.

        Raises:
            PeerUnreachable: It did not answer.
            PeerRefused: It refused.
        """


class StateStore(Protocol):
    """Small files that outlive the agent; each write is durable and whole, or did not happen."""

    def read(self, name: str) -> bytes | None:
        """Content, or None where there is no such file.

        Raises:
            StateDamaged: It is there and cannot be read.
        """

    def write(self, name: str, content: bytes) -> None:
        """Put content in place of what was there.

        Raises:
            StateDamaged: It cannot be written.
        """


class VmEngine(Protocol):
    """The VMs of this host. Every method may raise ``VmError``, and what a key source raises."""

    def create(self, spec: VmSpec, keys: KeySource | None) -> Vm:
        """Make a VM; encrypted where there is a key source."""

    def power_on(self, vm_id: str, keys: KeySource | None) -> Vm:
        """Power a VM on."""

    def power_off(self, vm_id: str, grace_seconds: int) -> Vm:
        """Power a VM off: after so many seconds for the guest, or at once."""

    def get(self, vm_id: str) -> Vm:
        """One VM."""

    def list(self) -> tuple[Vm, ...]:
        """All VMs, by id."""

    def read_console(self, vm_id: str, offset: int) -> tuple[bytes, int]:
        """Output of the serial console from ``offset`` on, at most 64 KiB, and where to go on."""

    def delete(self, vm_id: str) -> None:
        """Remove a VM that is off."""
