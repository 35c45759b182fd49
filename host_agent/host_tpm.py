"""The TPM of this host as ``host_agent.ports.HostTpm``: opened at its first use, and anew after it failed.

A TPM that is away at the start of the agent (its device, or a software TPM's process) must not keep running VMs from
being adopted. A TPM that hung is given up with its thread, so it is opened again rather than asked again.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

from attestation.attester.evidence import collect_evidence
from attestation.attester.tpm import EndorsementKey, Quote, Tpm
from attestation.binding import QuoteBinding
from attestation.errors import TpmError
from attestation.model import PcrBank

T = TypeVar("T")


class ReopeningTpm:
    """A TPM by its TCTI. One command at a time."""

    def __init__(self, tcti: str) -> None:
        """Use the TPM at ``tcti``; nothing is opened yet."""
        self._tcti = tcti
        self._lock = threading.Lock()
        self._tpm: Tpm | None = None

    def endorsement_key(self) -> EndorsementKey:
        """See ``HostTpm.endorsement_key``."""
        return self._run(Tpm.endorsement_key)

    def attestation_key(self) -> bytes:
        """See ``HostTpm.attestation_key``."""
        return self._run(Tpm.attestation_key)

    def activate_credential(self, credential_blob: bytes, encrypted_secret: bytes) -> bytes:
        """See ``HostTpm.activate_credential``."""
        return self._run(lambda tpm: tpm.activate_credential(credential_blob, encrypted_secret))

    def quote(self, binding: QuoteBinding, bank: PcrBank, pcrs: tuple[int, ...]) -> Quote:
        """See ``HostTpm.quote``."""
        try:
            return self._run(lambda tpm: collect_evidence(tpm, binding, bank, pcrs))
        except ValueError as exc:
            raise TpmError(f"the TPM cannot quote what is demanded: {exc}") from exc

    def close(self) -> None:
        """Disconnect."""
        with self._lock:
            if self._tpm is not None:
                self._tpm.close()
                self._tpm = None

    def _run(self, command: Callable[[Tpm], T]) -> T:
        with self._lock:
            reused = self._tpm is not None
            try:
                return self._command(command)
            except TpmError:
                # A connection that stood idle may have died with the TPM's former power cycle.
                if not reused:
                    raise
                return self._command(command)

    def _command(self, command: Callable[[Tpm], T]) -> T:
        if self._tpm is None:
            self._tpm = Tpm.open(self._tcti)
        try:
            return command(self._tpm)
        except TpmError:
            self._tpm.close()
            self._tpm = None
            raise
