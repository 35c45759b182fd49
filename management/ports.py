"""What the management server needs from outside: a store for the inventory, and the agents of joined hosts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from management.model import Event, EventDraft, Host, HostStatus, HostVm, Provider, Vm, VmSpec, VmState


@dataclass(frozen=True, slots=True)
class SpentToken:
    """A join token that was used, and by whom: the same host may repeat itself, nobody else may."""

    token_id: str
    host: Host
    key_hash: str
    """SHA-256 of the SubjectPublicKeyInfo in its certificate request, 64 hexadecimal digits."""
    expires_at: int
    """Seconds since the epoch; from then on the token is refused by its date and need not be remembered."""


class InventoryStore(Protocol):
    """The inventory and its event log.

    Each method is one transaction, durable when it returns. An event is stored in the transaction of the change that
    it tells of. What is absent is None, an empty list, or ``NotFound`` where the caller names a row to change.
    """

    def join_host(self, token: SpentToken, event: EventDraft, *, now: int) -> None:
        """Spend a join token and put its host.

        A token that the same host spent with the same key changes nothing but the host's address. Tokens that expired
        before ``now`` are forgotten.

        Raises:
            JoinRefused: TOKEN_SPENT by another key or host; IDENTITY_CONFLICT where the host's name belongs to
                another host id, or its host id to another name. Nothing was changed.
        """

    def list_hosts(self) -> list[Host]:
        """All hosts, by name."""

    def find_host(self, name: str) -> Host | None:
        """The host of that name."""

    def put_provider(self, provider: Provider, event: EventDraft) -> Provider:
        """Add a provider, or make a known one the default.

        The first provider becomes the default one. A new default takes the place of the old one; a default is not
        taken away by putting it again without.

        Returns:
            The provider as stored.
        """

    def list_providers(self) -> list[Provider]:
        """All providers, by name."""

    def add_vm(self, vm: Vm) -> None:
        """Add a VM.

        Raises:
            AlreadyExists: The name is taken.
        """

    def set_vm_state(self, vm_id: str, state: VmState, event: EventDraft | None) -> Vm:
        """Change where a VM stands.

        Raises:
            NotFound: There is no such VM.
        """

    def remove_vm(self, vm_id: str, event: EventDraft) -> None:
        """Remove a VM.

        Raises:
            NotFound: There is no such VM.
        """

    def next_generation(self, vm_id: str) -> int:
        """Count a VM's grants up and return the new generation, which was never returned before.

        Raises:
            NotFound: There is no such VM.
        """

    def find_vm(self, reference: str) -> Vm | None:
        """The VM of that id, else of that name."""

    def list_vms(self, *, after: str, limit: int) -> list[Vm]:
        """VMs by id, from the first id greater than ``after`` on."""

    def list_unsettled_vms(self) -> list[Vm]:
        """VMs that are being made or removed."""

    def count_vms_by_host(self) -> dict[str, int]:
        """How many VMs are placed on each host; hosts with none are absent."""

    def append_event(self, event: EventDraft) -> None:
        """Add to the event log."""

    def list_events(self, *, after: int, limit: int) -> list[Event]:
        """Events with a greater cursor than ``after``, in order.

        A reader that goes on from the last cursor it saw misses none: cursors become visible in their order.
        """


class HostConnection(Protocol):
    """The agent of one host. Every method may raise ``HostUnreachable`` and ``HostRefused``."""

    def create_vm(self, vm_id: str, spec: VmSpec, *, provider: str, grant: str) -> HostVm:
        """Make a VM; ``provider`` and ``grant`` are empty for a plain one. May take half an hour."""

    def power_on_vm(self, vm_id: str, *, grant: str) -> HostVm:
        """Power a VM on."""

    def power_off_vm(self, vm_id: str, *, grace_seconds: int) -> HostVm:
        """Power a VM off."""

    def list_vms(self) -> list[HostVm]:
        """All VMs of the host."""

    def get_vm(self, vm_id: str) -> HostVm:
        """One VM of the host."""

    def read_console(self, vm_id: str, *, offset: int) -> tuple[bytes, int]:
        """Output of the serial console from ``offset`` on, at most 64 KiB, and where to go on."""

    def delete_vm(self, vm_id: str) -> None:
        """Remove a VM with its disks."""


class Hosts(Protocol):
    """The agents of all joined hosts."""

    def connect(self, host: Host) -> HostConnection:
        """The agent of ``host``; whether it answers shows with the first call."""

    def statuses(self, hosts: Sequence[Host]) -> Mapping[str, HostStatus]:
        """How each host is, by name. Never raises for a host that does not answer."""

    def vms(self, hosts: Sequence[Host]) -> Mapping[str, HostVm]:
        """The VMs of all these hosts, by id; those of a host that does not answer are absent."""
