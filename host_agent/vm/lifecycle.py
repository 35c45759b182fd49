"""Life cycle of a VM on one host, as a table. Pure.

What is not in the table is illegal: it raises, and changes nothing.
"""

from enum import StrEnum
from typing import Final

from host_agent.errors import IllegalTransition


class VmState(StrEnum):
    """Where a VM stands."""

    CREATING = "creating"
    """Its bundle is being made; nobody else sees it yet."""
    OFF = "off"
    STARTING = "starting"
    ON = "on"
    PAUSED = "paused"
    """Halted in memory, by QEMU or by policy."""
    STOPPING = "stopping"
    DELETING = "deleting"
    FAILED = "failed"
    """Its bundle cannot be read; all that can be done is to delete it, or to mend the bundle and restart the agent."""


class VmEvent(StrEnum):
    """What happens to a VM."""

    CREATED = "be finished"
    POWER_ON = "power on"
    STARTED = "have started"
    START_FAILED = "fail to start"
    PAUSED = "pause"
    RESUMED = "resume"
    POWER_OFF = "power off"
    STOPPED = "have stopped"
    STOP_FAILED = "fail to stop"
    DIED = "die"
    DELETE = "be deleted"
    DELETE_FAILED = "fail to be deleted"


_S, _E = VmState, VmEvent
_TABLE: Final = {
    (_S.CREATING, _E.CREATED): _S.OFF,
    (_S.OFF, _E.POWER_ON): _S.STARTING,
    (_S.STARTING, _E.STARTED): _S.ON,
    (_S.STARTING, _E.START_FAILED): _S.OFF,
    (_S.ON, _E.PAUSED): _S.PAUSED,
    (_S.PAUSED, _E.RESUMED): _S.ON,
    (_S.ON, _E.POWER_OFF): _S.STOPPING,
    (_S.PAUSED, _E.POWER_OFF): _S.STOPPING,
    (_S.STOPPING, _E.STOPPED): _S.OFF,
    (_S.STOPPING, _E.STOP_FAILED): _S.ON,
    (_S.ON, _E.DIED): _S.OFF,
    (_S.PAUSED, _E.DIED): _S.OFF,
    (_S.OFF, _E.DELETE): _S.DELETING,
    (_S.FAILED, _E.DELETE): _S.DELETING,
    (_S.DELETING, _E.DELETE_FAILED): _S.FAILED,
}


def next_state(state: VmState, event: VmEvent) -> VmState:
    """The state after an event.

    Raises:
        IllegalTransition: The table does not have it.
    """
    try:
        return _TABLE[state, event]
    except KeyError:
        raise IllegalTransition(f"a VM that is {state} cannot {event}") from None
