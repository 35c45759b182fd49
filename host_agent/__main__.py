"""The host agent: ``python -m host_agent CONFIG.toml``.

VMs outlive it: it adopts running ones first, before anything that needs the TPM or another machine. Whatever is away at
its start (TPM, trust authority, management server) it keeps asking for, and says so in its status.
"""

import contextlib
import datetime
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from host_agent.agent import HostAgent
from host_agent.attestation_loop import AttestationLoop
from host_agent.attestation_session import AttestationSession
from host_agent.clients import GrpcJoinServer, GrpcKeyRelease, GrpcTrustAuthority
from host_agent.config import AgentSettings
from host_agent.enrolment import Enroller, host_id_of
from host_agent.errors import HostAgentError
from host_agent.event_logs import LogFiles
from host_agent.host_tpm import ReopeningTpm
from host_agent.join import Joiner
from host_agent.key_sweep import KeySweep
from host_agent.keycache import KeyCache
from host_agent.listener import Listener
from host_agent.rpc import services
from host_agent.state import StateDirectory, private_directory
from host_agent.vm.host_vms import HostVms
from serving.daemon import run_daemon
from serving.errors import ConfigError

_log = structlog.get_logger("host_agent")
_chance = random.SystemRandom().random


def start(config: Path) -> Callable[[], None]:
    """Start the agent from a configuration file.

    Returns:
        What stops it; VMs go on.

    Raises:
        ServingError: The configuration or the environment is wrong.
    """
    settings = AgentSettings.load(config)
    with contextlib.ExitStack() as stack:
        try:
            _run(settings, stack)
        except HostAgentError as exc:
            raise ConfigError(str(exc)) from exc
        return stack.pop_all().close
    raise AssertionError("unreachable")


def _run(settings: AgentSettings, stack: contextlib.ExitStack) -> None:
    """Start everything; what was started is stopped by ``stack``, in the reverse order."""
    state = StateDirectory(settings.state_directory)
    stack.callback(state.close)
    private_directory(settings.run_directory)
    vms = HostVms(settings.vm_directory, settings.run_directory, image_directories=settings.image_directories)
    stack.callback(vms.close)
    running = [vm.vm_id for vm in vms.list() if vm.qemu_pid]
    _log.info("adopted", vms=running)
    tpm = ReopeningTpm(settings.tcti or "")
    stack.callback(tpm.close)
    cache = KeyCache()
    stack.callback(cache.close)
    release = GrpcKeyRelease()
    stack.callback(release.close)
    enroller = Enroller(
        host_name=settings.name,
        state=state,
        tpm=tpm,
        connect=GrpcTrustAuthority,
        offer=settings.enrolment_offer,
        address=None if settings.trust_authority is None else settings.trust_authority.address,
    )
    logs = LogFiles(settings.log_paths(), settings.command_line)
    session = AttestationSession(enroller=enroller, tpm=tpm, logs=logs, connect=GrpcTrustAuthority, clock=_boot_clock)
    agent = HostAgent(settings.name, vms=vms, enroller=enroller, session=session, release=release, cache=cache)
    sweep = KeySweep(agent)
    sweep.start()
    stack.callback(sweep.stop)
    loop = AttestationLoop(session, clock=_boot_clock, jitter=_chance)
    loop.start()
    stack.callback(loop.stop)
    listener = Listener(
        settings.listener.address,
        services=services(agent),
        joiner=_joiner(settings, state),
        host_id=lambda: host_id_of(tpm.endorsement_key()).text,
        clock=lambda: datetime.datetime.now(datetime.UTC),
        jitter=_chance,
    )
    listener.start()
    stack.callback(listener.stop)


def _joiner(settings: AgentSettings, state: StateDirectory) -> Joiner:
    return Joiner(
        host_name=settings.name,
        hardware_uuid=settings.hardware_uuid,
        agent_address=settings.listener.reached_at,
        state=state,
        invitation=settings.join_invitation,
        connect=lambda invitation: GrpcJoinServer(invitation.address, invitation.ca_pem),
    )


def _boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(run_daemon("host_agent", start))
