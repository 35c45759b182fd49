"""The host agent as its callers see it: VM operations with the keys they need, and how the host is.

Whatever needs a key needs a placement grant and this host's attestation; both are the key provider's to judge. The
provider must be in the list that this host pinned: nobody else can point it at another.
"""

import structlog

from attestation.errors import TpmError
from host_agent.attestation_session import AttestationSession
from host_agent.enrolment import Enroller
from host_agent.errors import NotAttested, PeerRefused, PeerUnreachable, ProviderNotPinned, VmNotFound
from host_agent.keycache import KeyCache
from host_agent.model import HostStatus, SessionView
from host_agent.ports import KeyRelease, VmEngine
from host_agent.provider_pin import find_provider
from host_agent.trusted_keys import TrustedKeySource
from host_agent.vm.lifecycle import VmState
from host_agent.vm.model import Vm, VmSpec
from keyprovider.provider_list import ProviderEntry

_log = structlog.get_logger(__name__)
_WITH_KEYS = frozenset({VmState.STARTING, VmState.ON, VmState.PAUSED, VmState.STOPPING})


class HostAgent:
    """One host. Methods may be called from any thread."""

    def __init__(
        self,
        name: str,
        *,
        vms: VmEngine,
        enroller: Enroller,
        session: AttestationSession,
        release: KeyRelease,
        cache: KeyCache,
    ) -> None:
        """Put the parts together; ``name`` is the host's."""
        self._name = name
        self._vms = vms
        self._enroller = enroller
        self._session = session
        self._release = release
        self._cache = cache

    def status(self) -> HostStatus:
        """How the host is; never blocks."""
        enrolment, view = self._enroller.known(), self._session.view()
        return HostStatus(
            host_id="" if enrolment is None else enrolment.host_id.text,
            name=self._name,
            attested_until=None if view.attested is None else view.attested.attested_until,
            reason=view.reason,
            provider_list_version=0 if enrolment is None else enrolment.providers.version,
        )

    def attest(self) -> SessionView:
        """Attest now, and tell how it came out."""
        try:
            return SessionView(self._session.renew(self._session.view().attested), "")
        except NotAttested as exc:
            return SessionView(None, exc.reason, str(exc))

    def create_vm(self, spec: VmSpec, *, provider: str, grant: str) -> Vm:
        """Make a VM.

        Args:
            spec: What to make.
            provider: Key provider, from the pinned list; empty: a VM without encryption.
            grant: Placement grant, JWS.

        Raises:
            NotAttested: This host holds no token and gets none.
            ProviderNotPinned: The provider is not in the list.
            PeerUnreachable: The key provider does not answer.
            PeerRefused: The key provider refuses.
            ReleaseRejected: What the key provider sent is not a key for this.
            VmError: The VM cannot be made; nothing is left behind.
        """
        if not provider:
            vm = self._vms.create(spec, None)
        else:
            with self._keys(provider, spec.vm_id, grant) as keys:
                vm = self._vms.create(spec, keys)
        _log.info("VM created", vm_id=vm.vm_id, provider=vm.provider)
        return vm

    def power_on_vm(self, vm_id: str, *, grant: str) -> Vm:
        """Power a VM on, with a fresh release of its keys.

        Raises:
            NotAttested: This host holds no token and gets none.
            ProviderNotPinned: The VM's provider is not in the list.
            PeerUnreachable: The key provider does not answer.
            PeerRefused: The key provider refuses.
            ReleaseRejected: What the key provider sent is not a key for this.
            VmError: The VM cannot be powered on; it is as it was.
        """
        provider = self._vms.get(vm_id).provider
        if not provider:
            vm = self._vms.power_on(vm_id, None)
        else:
            with self._keys(provider, vm_id, grant) as keys:
                vm = self._vms.power_on(vm_id, keys)
                self._cache.hold(vm_id, keys.take_unwrapped())
        _log.info("VM powered on", vm_id=vm.vm_id, provider=vm.provider, qemu_pid=vm.qemu_pid)
        return vm

    def power_off_vm(self, vm_id: str, *, grace_seconds: int) -> Vm:
        """Power a VM off, and forget its keys.

        Raises:
            VmError: The VM cannot be powered off.
        """
        vm = self._vms.power_off(vm_id, grace_seconds)
        self._cache.drop(vm_id)
        _log.info("VM powered off", vm_id=vm.vm_id)
        return vm

    def get_vm(self, vm_id: str) -> Vm:
        """One VM.

        Raises:
            VmError: There is none of that id.
        """
        return self._vms.get(vm_id)

    def list_vms(self) -> tuple[Vm, ...]:
        """All VMs, by id."""
        return self._vms.list()

    def read_console(self, vm_id: str, *, offset: int) -> tuple[bytes, int]:
        """Output of the serial console from ``offset`` on, at most 64 KiB, and where to go on.

        Raises:
            VmError: There is no such VM.
        """
        return self._vms.read_console(vm_id, offset)

    def delete_vm(self, vm_id: str) -> None:
        """Remove a VM that is off.

        Raises:
            VmError: It is not off, or cannot be removed.
        """
        self._vms.delete(vm_id)
        self._cache.drop(vm_id)
        _log.info("VM removed", vm_id=vm_id)

    def forget_idle_keys(self) -> None:
        """Forget the keys of VMs that ended by themselves."""
        for vm_id in self._cache.vm_ids():
            try:
                has_ended = self._vms.get(vm_id).state not in _WITH_KEYS
            except VmNotFound:
                has_ended = True
            if has_ended:
                self._cache.drop(vm_id)

    def _keys(self, provider: str, vm_id: str, grant: str) -> TrustedKeySource:
        self._session.require()
        entry = self._pinned(provider)
        return TrustedKeySource(entry, vm_id=vm_id, grant=grant, session=self._session, release=self._release)

    def _pinned(self, provider: str) -> ProviderEntry:
        try:
            return find_provider(self._enroller.ensure().providers, provider)
        except ProviderNotPinned as missing:
            # It may have been published since this host enrolled.
            try:
                return find_provider(self._enroller.refresh_providers().providers, provider)
            except (NotAttested, PeerRefused, PeerUnreachable, TpmError):
                raise missing from None
