"""Storage policies, placement, privileges and values of the management server: all pure."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import HostId
from garant.management.v1 import management_pb2
from keyprovider.errors import GrantReason, GrantRejected
from keyprovider.grant import verify_grant
from management.errors import (
    InvalidArgument,
    PlacementReason,
    PlacementRefused,
    PolicyReason,
    PolicyRefused,
    PrivilegeMissing,
    VmBusy,
)
from management.grants import GRANT_LIFETIME_SECONDS, GrantSigner
from management.host_name import agent_server_name
from management.model import DiskSpec, Host, HostStatus, Provider, ProviderKind, VmSpec, checked_name, page_size_of
from management.operations import RunningOperations
from management.placement import choose_host
from management.privileges import REQUIREMENTS, ROLE_PRIVILEGES, Principal, Privilege, Role, principal_of
from management.storage_policy import asks_for_encryption, decide_storage
from serving.jws import key_id

GOLD = Provider("gold", ProviderKind.TRUSTED, is_default=True)
SILVER = Provider("silver", ProviderKind.NATIVE, is_default=False)
VM_ID = "7d0b1f3e-7c3b-4a2f-9a55-000000000001"


def host(name: str, host_id: str = "ab" * 32) -> Host:
    """A host of the cluster."""
    return Host(name, host_id, "default", "127.0.0.1:1", "")


ATTESTED = HostStatus(connected=True, attested=True, reason="")
DISTRUSTED = HostStatus(connected=True, attested=False, reason="REFERENCE_MISMATCH")
SILENT = HostStatus(connected=False, attested=False, reason="Socket closed")


@pytest.mark.parametrize(
    ("policy", "provider", "vtpm", "expected_policy", "expected_provider"),
    [
        ("", "", False, "plain", None),
        ("plain", "", False, "plain", None),
        ("", "", True, "encrypted", "gold"),
        ("encrypted", "", False, "encrypted", "gold"),
        ("encrypted", "silver", True, "encrypted", "silver"),
    ],
)
def test_encryption_follows_from_policy_or_vtpm(
    policy: str, provider: str, vtpm: bool, expected_policy: str, expected_provider: str | None
) -> None:
    """R-OP-5, R-OP-6: the policy or a vTPM asks for encryption; the default provider is used where none is named."""
    decision = decide_storage(policy=policy, provider=provider, vtpm=vtpm, providers=[GOLD, SILVER])
    assert decision.policy.name == expected_policy
    assert (decision.provider and decision.provider.name) == expected_provider
    assert asks_for_encryption(policy=policy, vtpm=vtpm) is decision.policy.is_encrypted


@pytest.mark.parametrize(
    ("policy", "provider", "vtpm", "providers", "reason"),
    [
        ("gold-plated", "", False, [GOLD], PolicyReason.UNKNOWN_STORAGE_POLICY),
        ("plain", "", True, [GOLD], PolicyReason.VTPM_NEEDS_ENCRYPTION),
        ("plain", "gold", False, [GOLD], PolicyReason.PROVIDER_WITHOUT_ENCRYPTION),
        ("", "gold", False, [GOLD], PolicyReason.PROVIDER_WITHOUT_ENCRYPTION),
        ("encrypted", "", False, [], PolicyReason.NO_KEY_PROVIDER),
        ("", "", True, [], PolicyReason.NO_KEY_PROVIDER),
        ("encrypted", "bronze", False, [GOLD], PolicyReason.UNKNOWN_KEY_PROVIDER),
        ("encrypted", "", False, [SILVER], PolicyReason.NO_DEFAULT_KEY_PROVIDER),
    ],
)
def test_a_policy_that_cannot_be_met_is_refused(
    policy: str, provider: str, vtpm: bool, providers: list[Provider], reason: PolicyReason
) -> None:
    """R-OP-5, R-OP-8: unknown names, a vTPM on plain storage and a missing provider each have a reason of their own."""
    with pytest.raises(PolicyRefused) as refused:
        decide_storage(policy=policy, provider=provider, vtpm=vtpm, providers=providers)
    assert refused.value.reason is reason


def test_a_request_with_an_unknown_policy_counts_as_one_for_encryption() -> None:
    """Privileges are checked before names: whoever may not encrypt learns nothing of policies."""
    assert asks_for_encryption(policy="no-such", vtpm=False)


def test_any_attested_host_is_the_least_loaded_one() -> None:
    """Of the attested hosts the one with the fewest VMs is chosen, then by name."""
    hosts = [host("c"), host("b"), host("a"), host("d")]
    statuses = {"a": ATTESTED, "b": ATTESTED, "c": ATTESTED, "d": DISTRUSTED}
    chosen = choose_host(named="", encrypted=True, hosts=hosts, statuses=statuses, vm_counts={"a": 2, "c": 0})
    assert chosen.name == "b"


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ("b", PlacementReason.HOST_NOT_ATTESTED),
        ("c", PlacementReason.HOST_NOT_CONNECTED),
        ("d", PlacementReason.HOST_NOT_CONNECTED),
        ("e", PlacementReason.UNKNOWN_HOST),
    ],
)
def test_a_named_host_that_cannot_take_an_encrypted_vm_is_refused(named: str, reason: PlacementReason) -> None:
    """R-TA-4: a host that is not attested, not there or not known takes no encrypted VM."""
    hosts = [host(name) for name in "abcd"]
    statuses = {"a": ATTESTED, "b": DISTRUSTED, "c": SILENT}
    with pytest.raises(PlacementRefused) as refused:
        choose_host(named=named, encrypted=True, hosts=hosts, statuses=statuses, vm_counts={})
    assert refused.value.reason is reason


def test_a_host_without_a_tpm_takes_no_encrypted_vm() -> None:
    """No grant could name it, so it is refused though it claims to be attested."""
    with pytest.raises(PlacementRefused, match="not attested"):
        choose_host(named="", encrypted=True, hosts=[host("a", "")], statuses={"a": ATTESTED}, vm_counts={})


def test_a_refusal_says_of_each_host_why() -> None:
    """B-3: the message names every host and its reason."""
    statuses = {"a": DISTRUSTED, "b": SILENT}
    with pytest.raises(PlacementRefused) as refused:
        choose_host(named="", encrypted=True, hosts=[host("b"), host("a")], statuses=statuses, vm_counts={})
    assert str(refused.value) == (
        "no host can take the encrypted VM: a is not attested (REFERENCE_MISMATCH); b does not answer (Socket closed)"
    )


def test_an_empty_cluster_is_named_as_such() -> None:
    """With no host at all the message says so."""
    with pytest.raises(PlacementRefused, match="the cluster has no hosts"):
        choose_host(named="", encrypted=False, hosts=[], statuses={}, vm_counts={})


def test_a_plain_vm_may_be_placed_on_a_host_that_is_not_attested() -> None:
    """Lost trust blocks keys only: plain VMs may still be made there."""
    chosen = choose_host(named="a", encrypted=False, hosts=[host("a")], statuses={"a": DISTRUSTED}, vm_counts={})
    assert chosen.name == "a"


def test_the_privilege_table_names_every_rpc_and_no_other() -> None:
    """R-OP-7: default deny has no gaps: the table and the protocol name the same RPCs."""
    service = management_pb2.DESCRIPTOR.services_by_name["ManagementService"]
    assert set(REQUIREMENTS) == {method.name for method in service.methods}


@pytest.mark.parametrize("rpc", sorted(REQUIREMENTS))
@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("role", list(Role))
def test_a_role_may_call_what_its_privileges_cover(rpc: str, encrypted: bool, role: Role) -> None:
    """R-OP-7: each role at every RPC: allowed exactly where the role holds all that the RPC needs."""
    requirement = REQUIREMENTS[rpc]
    needed = requirement.always | (requirement.where_encrypted if encrypted else frozenset())
    principal = principal_of("somebody", {"somebody": role})
    if needed <= ROLE_PRIVILEGES[role]:
        principal.demand(rpc, encrypted=encrypted)
    else:
        with pytest.raises(PrivilegeMissing):
            principal.demand(rpc, encrypted=encrypted)


def test_an_administrator_without_cryptography_has_no_cryptographic_privilege() -> None:
    """R-OP-7: that role makes and runs plain VMs, and touches no key, console or provider."""
    held = ROLE_PRIVILEGES[Role.NO_CRYPTOGRAPHY_ADMINISTRATOR]
    assert not any(privilege.startswith("Cryptographer.") for privilege in held)
    assert Privilege.VM_CREATE in held


def test_all_cryptographic_privileges_exist() -> None:
    """R-OP-7: the fourteen of the specification, by name."""
    names = {privilege.removeprefix("Cryptographer.") for privilege in Privilege if "Cryptographer" in privilege}
    assert names == {
        *("Encrypt", "EncryptNew", "Decrypt", "Recrypt", "AddDisk", "Clone", "Migrate", "RegisterVM", "RegisterHost"),
        *("ManageKeys", "ManageKeyServers", "ManageEncryptionPolicy", "ReadKeyServersInfo", "Access"),
    }


def test_an_rpc_that_the_table_does_not_name_is_nobodys() -> None:
    """Default deny holds for those with every privilege too."""
    with pytest.raises(PrivilegeMissing, match="nobody"):
        Principal("root", frozenset(Privilege)).demand("ExportKeys")


def test_somebody_without_a_role_may_do_nothing() -> None:
    """A VM administrator's certificate alone entitles to nothing."""
    with pytest.raises(PrivilegeMissing):
        principal_of("mallory", {"alice": Role.ADMINISTRATOR}).demand("ListHosts")


def test_a_signed_grant_is_one_that_the_key_provider_believes() -> None:
    """B-19: VM, host, generation, principal and times arrive as they were signed, for two minutes."""
    key = ec.generate_private_key(ec.SECP256R1())
    text = GrantSigner("management", key).sign(
        vm_id=VM_ID, host_id=HostId("cd" * 32), generation=7, grant_id="g-1", now=1_000
    )
    principals = {key_id(key.public_key()): key.public_key()}
    grant = verify_grant(text, principals=principals, now=1_000)
    assert (grant.vm_id, grant.host_id.text, grant.generation) == (VM_ID, "cd" * 32, 7)
    assert (grant.principal, grant.grant_id) == ("management", "g-1")
    with pytest.raises(GrantRejected) as rejected:
        verify_grant(text, principals=principals, now=1_000 + GRANT_LIFETIME_SECONDS)
    assert rejected.value.reason is GrantReason.EXPIRED


def test_a_signers_key_is_not_shown() -> None:
    """The principal key does not appear in a representation."""
    assert "key" not in repr(GrantSigner("management", ec.generate_private_key(ec.SECP256R1())))


@pytest.mark.parametrize("name", ["web", "a", "x" * 255, "Büro 7/ü", "虚拟机", "🦀", " spaced ", "a\u202eb"])
def test_names_of_any_script_are_taken(name: str) -> None:
    """A VM name is any text of 1 to 255 characters without control characters."""
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\0", "\x7f", "\x85", "\ud800"])
def test_names_with_control_characters_or_of_wrong_length_are_refused(name: str) -> None:
    """Such a name is refused before anything else happens."""
    with pytest.raises(InvalidArgument):
        checked_name(name)


@pytest.mark.parametrize(
    "change",
    [
        {"cpus": 0},
        {"cpus": 256},
        {"memory_mib": 63},
        {"memory_mib": 1_048_577},
        {"name": ""},
        {"disks": (DiskSpec("a", "", 1), DiskSpec("a", "", 1))},
        {"disks": tuple(DiskSpec(f"d{number}", "", 1) for number in range(65))},
        {"kernel_path": "relative"},
        {"kernel_path": "/vmlinuz\0"},
        {"initrd_path": "/initrd"},
        {"kernel_path": "/vmlinuz", "kernel_command_line": "a\nb"},
        {"kernel_path": "/vmlinuz", "kernel_command_line": "x" * 4097},
    ],
)
def test_hardware_out_of_range_is_refused(change: dict[str, object]) -> None:
    """Sizes, paths and disk names are checked before a host is asked."""
    fields: dict[str, object] = {"name": "vm", "cpus": 1, "memory_mib": 64, "vtpm": False, **change}
    with pytest.raises(InvalidArgument):
        VmSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "source", "size"),
    [("", "/a", 0), ("Root", "/a", 0), ("a" * 33, "/a", 0), ("a/b", "/a", 0), ("a", "a", 0), ("a", "", 0)],
)
def test_a_malformed_disk_is_refused(name: str, source: str, size: int) -> None:
    """A disk has a short plain name, an absolute source or a size."""
    with pytest.raises(InvalidArgument):
        DiskSpec(name, source, size)


@pytest.mark.parametrize(
    ("name", "host_id", "address", "hardware_uuid"),
    [
        ("", "ab" * 32, "h:1", ""),
        ("a/b", "ab" * 32, "h:1", ""),
        ("a", "AB" * 32, "h:1", ""),
        ("a", "ab", "h:1", ""),
        ("a", "ab" * 32, "h", ""),
        ("a", "ab" * 32, "h:0", ""),
        ("a", "ab" * 32, "h:65536", ""),
        ("a", "ab" * 32, "unix:/run/x:1", ""),
        ("a", "ab" * 32, "h:1", "no-uuid"),
    ],
)
def test_a_malformed_host_is_refused(name: str, host_id: str, address: str, hardware_uuid: str) -> None:
    """What a host says of itself is checked for its shape."""
    with pytest.raises(InvalidArgument):
        Host(name, host_id, "default", address, hardware_uuid)


def test_a_host_without_a_tpm_may_be_in_the_inventory() -> None:
    """Its host id is empty, its address may be IPv6."""
    assert Host("a", "", "default", "[::1]:7443", "").host_id == ""


def test_the_servers_name_of_an_agent_fits_into_dns_labels() -> None:
    """Each host id has a name of its own, with labels of at most 63 characters."""
    names = [agent_server_name("a", "ab" * 32), agent_server_name("a", "cd" * 32), agent_server_name("a", "")]
    assert len(set(names)) == 3
    assert all(len(label) <= 63 for name in names for label in name.split("."))


def test_a_page_has_a_default_and_a_largest_size() -> None:
    """0 means 100; more than 1,000 is refused."""
    assert page_size_of(0) == 100
    assert page_size_of(1_000) == 1_000
    with pytest.raises(InvalidArgument):
        page_size_of(1_001)


def test_a_vm_is_held_by_one_operation_at_a_time() -> None:
    """A second operation on the same VM is refused and says which one is under way; another VM's is not."""
    running = RunningOperations()
    with (
        running.exclusive("a", "power on"),
        running.exclusive("b", "delete"),
        pytest.raises(VmBusy, match="power on is under way"),
        running.exclusive("a", "delete"),
    ):
        pytest.fail("held twice")
    with running.exclusive("a", "delete"):
        pass
