"""Who may do what: privileges, built-in roles, and which privilege each RPC needs (R-OP-7).

One table, default deny: an RPC that it does not name is nobody's. The privileges hold for every kind of key provider.
Pure.

Source of the names: the product that users come from; ``Cryptographer.Access`` is its "Direct Access" (console).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from management.errors import PrivilegeMissing


class Privilege(StrEnum):
    """What a principal may be allowed to do."""

    SYSTEM_READ = "System.Read"
    VM_CREATE = "VirtualMachine.Create"
    VM_POWER = "VirtualMachine.Power"
    VM_DELETE = "VirtualMachine.Delete"
    ENCRYPT = "Cryptographer.Encrypt"
    ENCRYPT_NEW = "Cryptographer.EncryptNew"
    DECRYPT = "Cryptographer.Decrypt"
    RECRYPT = "Cryptographer.Recrypt"
    ADD_DISK = "Cryptographer.AddDisk"
    CLONE = "Cryptographer.Clone"
    MIGRATE = "Cryptographer.Migrate"
    REGISTER_VM = "Cryptographer.RegisterVM"
    REGISTER_HOST = "Cryptographer.RegisterHost"
    MANAGE_KEYS = "Cryptographer.ManageKeys"
    MANAGE_KEY_SERVERS = "Cryptographer.ManageKeyServers"
    MANAGE_ENCRYPTION_POLICY = "Cryptographer.ManageEncryptionPolicy"
    READ_KEY_SERVERS_INFO = "Cryptographer.ReadKeyServersInfo"
    ACCESS = "Cryptographer.Access"


class Role(StrEnum):
    """A built-in role."""

    ADMINISTRATOR = "administrator"
    NO_CRYPTOGRAPHY_ADMINISTRATOR = "no-cryptography-administrator"
    READ_ONLY = "read-only"


_PLAIN = frozenset(privilege for privilege in Privilege if not privilege.startswith("Cryptographer."))

ROLE_PRIVILEGES: Mapping[Role, frozenset[Privilege]] = {
    Role.ADMINISTRATOR: frozenset(Privilege),
    Role.NO_CRYPTOGRAPHY_ADMINISTRATOR: _PLAIN,
    Role.READ_ONLY: frozenset({Privilege.SYSTEM_READ}),
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """What an RPC needs."""

    always: frozenset[Privilege]
    where_encrypted: frozenset[Privilege] = frozenset()
    """Needed besides, where the VM in question is or will be encrypted."""


def _needs(*privileges: Privilege, where_encrypted: frozenset[Privilege] = frozenset()) -> Requirement:
    return Requirement(frozenset(privileges), where_encrypted)


REQUIREMENTS: Mapping[str, Requirement] = {
    "ListHosts": _needs(Privilege.SYSTEM_READ),
    "RegisterProvider": _needs(Privilege.MANAGE_KEY_SERVERS),
    "ListProviders": _needs(Privilege.READ_KEY_SERVERS_INFO),
    "ListStoragePolicies": _needs(Privilege.SYSTEM_READ),
    "CreateVm": _needs(Privilege.VM_CREATE, where_encrypted=frozenset({Privilege.ENCRYPT_NEW})),
    "GetVm": _needs(Privilege.SYSTEM_READ),
    "ListVms": _needs(Privilege.SYSTEM_READ),
    "PowerOnVm": _needs(Privilege.VM_POWER),
    "PowerOffVm": _needs(Privilege.VM_POWER),
    "ReadConsole": _needs(Privilege.ACCESS),
    "DeleteVm": _needs(Privilege.VM_DELETE),
    "ListEvents": _needs(Privilege.SYSTEM_READ),
}
"""What each RPC of ``ManagementService`` needs."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, and what they may do."""

    name: str
    privileges: frozenset[Privilege]

    def demand(self, rpc: str, *, encrypted: bool = False) -> None:
        """Check that this principal may call ``rpc``.

        Args:
            rpc: Name of a method of ``ManagementService``.
            encrypted: Whether the VM in question is or will be encrypted.

        Raises:
            PrivilegeMissing: A privilege is missing, or the table does not name the RPC.
        """
        requirement = REQUIREMENTS.get(rpc)
        if requirement is None:
            raise PrivilegeMissing(f"{rpc} is allowed to nobody")
        needed = requirement.always | (requirement.where_encrypted if encrypted else frozenset())
        missing = sorted(needed - self.privileges)
        if missing:
            raise PrivilegeMissing(f"{self.name} lacks the privilege {' and '.join(missing)}")


def principal_of(name: str, roles: Mapping[str, Role]) -> Principal:
    """The principal of that name; one without a role has no privilege."""
    role = roles.get(name)
    return Principal(name, frozenset() if role is None else ROLE_PRIVILEGES[role])
