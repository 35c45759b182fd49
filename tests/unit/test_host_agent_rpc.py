"""The host agent's edge: who may call, and how each error is told."""

import grpc
import pytest

from attestation.errors import TpmError
from garant.host.v1 import host_pb2
from host_agent import errors, rpc
from host_agent.errors import HostAgentError
from host_agent.vm.lifecycle import VmState
from serving.identity import Role
from serving.status import Refusal

_NEVER_LEAVE = {"HostAgentError", "JoinFailed", "EventLogUnreadable", "VmError", "VmDirectoryInUse", "FormatError"}
"""Roots, errors that end the start, and errors that are turned into others."""


def _tell(error: Exception) -> Refusal:
    return next(tell(error) for kind, tell in rpc.STATUSES if isinstance(error, kind))


def test_only_the_management_server_may_call() -> None:
    """Every method of the service is in the table, for the management server alone."""
    methods = host_pb2.DESCRIPTOR.services_by_name["HostService"].methods
    assert {
        f"/garant.host.v1.HostService/{method.name}": frozenset({Role.MANAGEMENT_SERVER}) for method in methods
    } == rpc.METHODS


def test_every_power_state_is_sent() -> None:
    """No state of a VM is sent as unspecified."""
    assert set(rpc._POWER_STATES) == set(VmState)
    assert host_pb2.POWER_STATE_UNSPECIFIED not in rpc._POWER_STATES.values()


def test_every_error_has_a_row_of_its_own() -> None:
    """An error of this component is told by a reason of its own, not as an unexpected one."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HostAgentError)]
    rows = {kind for kind, _ in rpc.STATUSES}
    assert {kind.__name__ for kind in kinds if kind not in rows} <= _NEVER_LEAVE


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.NotAttested("APPRAISAL_REFUSED", "m"), grpc.StatusCode.FAILED_PRECONDITION, "HOST_NOT_ATTESTED"),
        (
            errors.PeerUnreachable(errors.Peer.KEY_PROVIDER, "m"),
            grpc.StatusCode.UNAVAILABLE,
            "KEY_PROVIDER_UNREACHABLE",
        ),
        (
            errors.PeerRefused(errors.Peer.KEY_PROVIDER, "GRANT_FOR_OTHER_VM", "m"),
            grpc.StatusCode.PERMISSION_DENIED,
            "GRANT_FOR_OTHER_VM",
        ),
        (
            errors.PeerRefused(errors.Peer.KEY_PROVIDER, "HEARTBEAT_STALE", "m", passing=True),
            grpc.StatusCode.UNAVAILABLE,
            "HEARTBEAT_STALE",
        ),
        (errors.ProviderNotPinned("m"), grpc.StatusCode.FAILED_PRECONDITION, "PROVIDER_NOT_PINNED"),
        (errors.VmNotFound("m"), grpc.StatusCode.NOT_FOUND, "VM_NOT_FOUND"),
        (
            errors.ImageRefused(errors.ImageReason.NOT_FOUND, "m"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "IMAGE_NOT_FOUND",
        ),
        (TpmError("m"), grpc.StatusCode.UNAVAILABLE, "TPM_UNAVAILABLE"),
    ],
)
def test_errors_are_told_by_stable_reasons(error: Exception, code: grpc.StatusCode, reason: str) -> None:
    """Status and reason of each error are part of the interface."""
    refusal = _tell(error)
    assert (refusal.code, refusal.reason) == (code, reason)


def test_reason_of_lost_trust_is_in_the_message() -> None:
    """What the trust authority gave as reason reaches the administrator of the VM (B-3)."""
    assert "APPRAISAL_REFUSED" in _tell(errors.NotAttested("APPRAISAL_REFUSED", "the evidence was refused")).message
