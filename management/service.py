"""The management server's work: decides by the pure cores, keeps the inventory, asks the hosts.

Each method is one RPC. Who may call it was checked at the edge by name of the RPC; what depends on the VM itself
(``Cryptographer.EncryptNew``) is checked here. No method could return a key: none ever gets here.

Making a VM: decision → placement → row (creating) → grant → host → row active, or removed with an event. A VM whose
outcome is unknown stays in its state until ``settle`` has asked its host.
"""

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from attestation.model import HostId
from management.errors import (
    HostError,
    HostRefused,
    HostUnreachable,
    InvalidArgument,
    NotFound,
    VmBusy,
    VmUnsettled,
)
from management.grants import GrantSigner
from management.model import (
    Event,
    EventDraft,
    Host,
    HostStatus,
    HostVm,
    Provider,
    ProviderKind,
    StoragePolicy,
    Vm,
    VmSpec,
    VmState,
    VmView,
    checked_name,
    is_vm_id,
    page_size_of,
)
from management.operations import RunningOperations
from management.placement import choose_host
from management.ports import HostConnection, Hosts, InventoryStore
from management.privileges import Principal
from management.storage_policy import BUILT_IN_POLICIES, asks_for_encryption, decide_storage

SERVER = Principal("", frozenset())
"""The server itself, where it acts unasked."""
MAX_GRACE_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service is told at its start."""

    cluster: str
    clock: Callable[[], datetime.datetime]
    """Gives aware times."""
    new_id: Callable[[], str]
    """Gives a new random UUID in RFC 9562 text form."""


class ManagementService:
    """Inventory and VM operations of one site."""

    def __init__(
        self, store: InventoryStore, hosts: Hosts, signer: GrantSigner, running: RunningOperations, settings: Settings
    ) -> None:
        """Serve from ``store`` and through ``hosts``."""
        self._store = store
        self._hosts = hosts
        self._signer = signer
        self._running = running
        self._settings = settings

    # Hosts, providers, policies, events.

    def list_hosts(self) -> list[tuple[Host, HostStatus]]:
        """All hosts by name, and how each is now."""
        hosts = self._store.list_hosts()
        statuses = self._hosts.statuses(hosts)
        return [(host, statuses[host.name]) for host in hosts]

    def register_provider(self, name: str, *, is_default: bool, principal: Principal) -> Provider:
        """Register a trusted provider by the name that the trust authority published.

        Whether it is published is for the hosts to know, which pinned the signed list.

        Raises:
            InvalidArgument: Not a provider's name.
        """
        provider = Provider(name, ProviderKind.TRUSTED, is_default)
        event = self._event("provider.registered", principal, f"key provider {name} is registered")
        return self._store.put_provider(provider, event)

    def list_providers(self) -> list[Provider]:
        """All key providers, by name."""
        return self._store.list_providers()

    def list_storage_policies(self) -> Sequence[StoragePolicy]:
        """All storage policies, by name."""
        return BUILT_IN_POLICIES

    def list_events(self, *, after: int, page_size: int) -> list[Event]:
        """Events with a greater cursor than ``after``.

        Raises:
            InvalidArgument: The page is too large.
        """
        return self._store.list_events(after=after, limit=page_size_of(page_size))

    # VMs, read.

    def get_vm(self, reference: str) -> VmView:
        """A VM by id or name.

        Raises:
            NotFound: There is none.
        """
        vm = self._find(reference)
        return VmView(vm, self._ask(vm))

    def list_vms(self, *, page_size: int, page_token: str) -> tuple[list[VmView], str]:
        """A page of VMs by id, and the token of the next page; empty on the last one.

        Raises:
            InvalidArgument: The page is too large, or the token is none of ours.
        """
        if page_token and not is_vm_id(page_token):
            raise InvalidArgument("the page token is not one that was given out")
        limit = page_size_of(page_size)
        vms = self._store.list_vms(after=page_token, limit=limit + 1)
        page, more = vms[:limit], len(vms) > limit
        names = {vm.host for vm in page}
        told = self._hosts.vms([host for host in self._store.list_hosts() if host.name in names])
        return [VmView(vm, told.get(vm.vm_id)) for vm in page], page[-1].vm_id if more else ""

    def read_console(self, reference: str, *, offset: int) -> tuple[bytes, int]:
        """A piece of a VM's serial console from ``offset`` on, and where to go on.

        Raises:
            NotFound: There is no such VM.
            HostError: Its host does not answer, or refused.
        """
        vm = self._find(reference)
        return self._connection(vm).read_console(vm.vm_id, offset=offset)

    # VMs, changed.

    def create_vm(self, spec: VmSpec, *, storage_policy: str, provider: str, host: str, principal: Principal) -> VmView:
        """Make a VM.

        Raises:
            PrivilegeMissing: It would be encrypted, and the caller may not do that.
            PolicyRefused: Storage policy and provider do not fit together (R-OP-8: no provider is set up).
            PlacementRefused: No host can take it.
            AlreadyExists: Its name is taken.
            HostRefused: The host could not make it. Until here nothing is left behind.
            HostUnreachable: The host did not answer; nothing is left behind, unless it may have acted: then the VM
                stays in its state until the host says how it came out.
        """
        principal.demand("CreateVm", encrypted=asks_for_encryption(policy=storage_policy, vtpm=spec.vtpm))
        decision = decide_storage(
            policy=storage_policy, provider=provider, vtpm=spec.vtpm, providers=self._store.list_providers()
        )
        placed_on = self._place(host, encrypted=decision.provider is not None)
        vm = Vm(
            vm_id=self._settings.new_id(),
            name=spec.name,
            host=placed_on.name,
            storage_policy=decision.policy.name,
            provider="" if decision.provider is None else decision.provider.name,
            vtpm=spec.vtpm,
            state=VmState.CREATING,
            generation=0,
        )
        with self._running.exclusive(vm.vm_id, "create"):
            self._store.add_vm(vm)
            try:
                grant = self._grant(vm, placed_on)
                connection = self._hosts.connect(placed_on)
                on_host = connection.create_vm(vm.vm_id, spec, provider=vm.provider, grant=grant)
            except HostError as exc:
                if isinstance(exc, HostUnreachable) and exc.may_have_acted:
                    why = f"whether VM {vm.name} was created is not known yet: {exc}"
                    self._store.append_event(self._event("vm.create-unknown", principal, why, vm))
                else:
                    why = f"VM {vm.name} was not created: {_told(exc)}"
                    self._store.remove_vm(vm.vm_id, self._event("vm.create-failed", principal, why, vm))
                raise
            created = self._event("vm.created", principal, f"VM {vm.name} was created on {vm.host}", vm)
            return VmView(self._store.set_vm_state(vm.vm_id, VmState.ACTIVE, created), on_host)

    def power_on_vm(self, reference: str, *, principal: Principal) -> VmView:
        """Power a VM on, with a new grant where it is encrypted.

        Raises:
            NotFound: There is no such VM.
            VmBusy, VmUnsettled: Another operation is under way, or the VM is half made.
            HostError: Its host does not answer, or refused.
        """
        vm = self._find(reference)
        with self._running.exclusive(vm.vm_id, "power on"), self._recorded(vm, principal, "vm.power-on-failed"):
            vm = self._settled(vm.vm_id)
            grant = self._grant(vm, self._host_of(vm))
            on_host = self._connection(vm).power_on_vm(vm.vm_id, grant=grant)
            self._store.append_event(self._event("vm.powered-on", principal, f"VM {vm.name} was powered on", vm))
            return VmView(vm, on_host)

    def power_off_vm(self, reference: str, *, grace_seconds: int, principal: Principal) -> VmView:
        """Power a VM off: at once, or by asking its guest and waiting up to ``grace_seconds``.

        Raises:
            InvalidArgument: More than an hour of grace.
            NotFound: There is no such VM.
            VmBusy, VmUnsettled: Another operation is under way, or the VM is half made.
            HostError: Its host does not answer, or refused.
        """
        if grace_seconds > MAX_GRACE_SECONDS:
            raise InvalidArgument(f"a guest gets at most {MAX_GRACE_SECONDS:,} s to shut down, not {grace_seconds:,}")
        vm = self._find(reference)
        with self._running.exclusive(vm.vm_id, "power off"), self._recorded(vm, principal, "vm.power-off-failed"):
            vm = self._settled(vm.vm_id)
            on_host = self._connection(vm).power_off_vm(vm.vm_id, grace_seconds=grace_seconds)
            self._store.append_event(self._event("vm.powered-off", principal, f"VM {vm.name} was powered off", vm))
            return VmView(vm, on_host)

    def delete_vm(self, reference: str, *, principal: Principal) -> None:
        """Remove a VM that is powered off, or one that is half made or half removed.

        Raises:
            NotFound: There is no such VM.
            VmBusy: Another operation is under way.
            HostRefused: The host did not remove it (because it runs, say); it is as it was.
            HostUnreachable: The host did not answer; it is as it was, unless the host may have acted: then the removal
                is finished when it answers.
        """
        vm = self._find(reference)
        with self._running.exclusive(vm.vm_id, "delete"), self._recorded(vm, principal, "vm.delete-failed"):
            current = self._store.find_vm(vm.vm_id)
            if current is None:
                raise NotFound(f"VM {vm.name} is gone already")
            self._store.set_vm_state(vm.vm_id, VmState.DELETING, None)
            try:
                self._delete_on_host(vm)
            except HostError as exc:
                if not (isinstance(exc, HostUnreachable) and exc.may_have_acted):
                    self._store.set_vm_state(vm.vm_id, current.state, None)
                raise
            deleted = self._event("vm.deleted", principal, f"VM {vm.name} was deleted with its disks", vm)
            self._store.remove_vm(vm.vm_id, deleted)

    # What was cut off.

    def settle(self) -> int:
        """Ask the hosts what became of VMs whose making or removal was cut off, and finish or undo it.

        VMs with an operation under way, and those whose host does not answer, are left for the next time.

        Returns:
            How many are still not settled.
        """
        return sum(not self._settle(vm) for vm in self._store.list_unsettled_vms())

    def _settle(self, vm: Vm) -> bool:
        try:
            with self._running.exclusive(vm.vm_id, "settle"):
                current = self._store.find_vm(vm.vm_id)
                if current is not None and current.state is VmState.CREATING:
                    self._settle_creation(current)
                elif current is not None and current.state is VmState.DELETING:
                    self._settle_removal(current)
                return True
        except (HostError, VmBusy):
            return False

    def _settle_creation(self, vm: Vm) -> None:
        """A VM that its host has is active; one that it lacks is removed here, after what there is of it there."""
        if any(found.vm_id == vm.vm_id for found in self._connection(vm).list_vms()):
            why = f"VM {vm.name} had been created on {vm.host}"
            self._store.set_vm_state(vm.vm_id, VmState.ACTIVE, self._event("vm.created", SERVER, why, vm))
            return
        # A host that is still at it refuses, and the VM stays as it is.
        self._delete_on_host(vm)
        why = f"the creation of VM {vm.name} on {vm.host} was cut off; what there was of it is removed"
        self._store.remove_vm(vm.vm_id, self._event("vm.create-failed", SERVER, why, vm))

    def _settle_removal(self, vm: Vm) -> None:
        try:
            self._delete_on_host(vm)
        except HostRefused as exc:
            why = f"VM {vm.name} was not deleted: {_told(exc)}"
            self._store.set_vm_state(vm.vm_id, VmState.ACTIVE, self._event("vm.delete-failed", SERVER, why, vm))
            return
        why = f"VM {vm.name} was deleted with its disks"
        self._store.remove_vm(vm.vm_id, self._event("vm.deleted", SERVER, why, vm))

    # Parts.

    def _place(self, named: str, *, encrypted: bool) -> Host:
        hosts = [host for host in self._store.list_hosts() if host.cluster == self._settings.cluster]
        asked = [host for host in hosts if host.name == named] if named else hosts
        return choose_host(
            named=named,
            encrypted=encrypted,
            hosts=hosts,
            statuses=self._hosts.statuses(asked),
            vm_counts=self._store.count_vms_by_host(),
        )

    def _find(self, reference: str) -> Vm:
        vm = self._store.find_vm(checked_name(reference, "VM name or id"))
        if vm is None:
            raise NotFound(f"no VM {reference!r}")
        return vm

    def _settled(self, vm_id: str) -> Vm:
        """The VM as it is now that nobody else works on it."""
        vm = self._store.find_vm(vm_id)
        if vm is None:
            raise NotFound(f"VM {vm_id} is gone")
        if vm.state is not VmState.ACTIVE:
            raise VmUnsettled(f"VM {vm.name} is {vm.state}; try again when its host has answered, or delete it")
        return vm

    def _host_of(self, vm: Vm) -> Host:
        host = self._store.find_host(vm.host)
        if host is None:
            raise NotFound(f"host {vm.host}, which VM {vm.name} is placed on, is not in the inventory")
        return host

    def _connection(self, vm: Vm) -> HostConnection:
        return self._hosts.connect(self._host_of(vm))

    def _grant(self, vm: Vm, host: Host) -> str:
        """A new grant for an encrypted VM on its host; nothing for a plain one, which needs no key."""
        if not vm.is_encrypted:
            return ""
        return self._signer.sign(
            vm_id=vm.vm_id,
            host_id=HostId(host.host_id),
            generation=self._store.next_generation(vm.vm_id),
            grant_id=self._settings.new_id(),
            now=int(self._settings.clock().timestamp()),
        )

    def _ask(self, vm: Vm) -> HostVm | None:
        try:
            return self._connection(vm).get_vm(vm.vm_id)
        except HostError:
            return None

    def _delete_on_host(self, vm: Vm) -> None:
        try:
            self._connection(vm).delete_vm(vm.vm_id)
        except HostRefused as exc:
            if not exc.is_not_found:
                raise

    @contextlib.contextmanager
    def _recorded(self, vm: Vm, principal: Principal, kind: str) -> Iterator[None]:
        """Record what a host refused or left open in the event log."""
        try:
            yield
        except HostError as exc:
            self._store.append_event(self._event(kind, principal, f"VM {vm.name}: {_told(exc)}", vm))
            raise

    def _event(self, kind: str, principal: Principal, message: str, vm: Vm | None = None) -> EventDraft:
        return EventDraft(
            occurred_at=self._settings.clock(),
            type=kind,
            principal=principal.name,
            message=message,
            vm_id="" if vm is None else vm.vm_id,
            host="" if vm is None else vm.host,
        )


def _told(exc: HostError) -> str:
    """A host's error for the event log: with its stable reason, if the host gave one."""
    return f"{exc.reason}: {exc}" if isinstance(exc, HostRefused) else str(exc)
