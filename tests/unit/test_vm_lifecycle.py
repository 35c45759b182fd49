"""Life cycle of a VM: the table."""

import itertools

import pytest

from host_agent.errors import IllegalTransition
from host_agent.vm.lifecycle import VmEvent, VmState, next_state

LEGAL = {
    ("creating", "CREATED"): "off",
    ("off", "POWER_ON"): "starting",
    ("starting", "STARTED"): "on",
    ("starting", "START_FAILED"): "off",
    ("on", "PAUSED"): "paused",
    ("paused", "RESUMED"): "on",
    ("on", "POWER_OFF"): "stopping",
    ("paused", "POWER_OFF"): "stopping",
    ("stopping", "STOPPED"): "off",
    ("stopping", "STOP_FAILED"): "on",
    ("on", "DIED"): "off",
    ("paused", "DIED"): "off",
    ("off", "DELETE"): "deleting",
    ("failed", "DELETE"): "deleting",
    ("deleting", "DELETE_FAILED"): "failed",
}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(VmState, VmEvent)))
def test_only_listed_transitions_are_legal(state: VmState, event: VmEvent) -> None:
    """Every pair of state and event either has its one successor or raises."""
    expected = LEGAL.get((state.value, event.name))
    if expected:
        assert next_state(state, event) == expected
    else:
        with pytest.raises(IllegalTransition, match=f"a VM that is {state} cannot {event}"):
            next_state(state, event)


def test_every_state_leads_on() -> None:
    """No state is a trap: each can be left."""
    assert {state for state, _ in LEGAL} == set(VmState)
