"""A running site to measure: real services as processes, and one attested host in this process."""

import contextlib
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.simulator.boot import Recording
from cli.demo.preflight import choose_ports
from cli.demo.processes import stop_all_descendants
from cli.demo.world import PROVIDER, World
from host_agent.attestation_session import AttestationSession
from host_agent.clients import GrpcTrustAuthority
from host_agent.config import AgentSettings
from host_agent.enrolment import Enroller
from host_agent.event_logs import LogFiles
from host_agent.host_tpm import ReopeningTpm
from host_agent.model import AttestedHost
from host_agent.state import StateDirectory
from keyprovider.grant import PlacementGrant, sign_grant
from serving.authority import private_key_pem
from serving.client import ClientTls, open_channel


class _WarmAuthority(GrpcTrustAuthority):
    """A client whose channel stays open between attestations."""

    def close(self) -> None:
        """Keep the channel."""


@dataclass(frozen=True, slots=True)
class BenchSite:
    """The site, and its one host."""

    world: World
    tpm: ReopeningTpm
    session: AttestationSession
    """Attests over a channel that is open."""
    connecting_session: AttestationSession
    """Attests over a new channel each time, as the host agent does every four minutes."""

    def grant(self, host: AttestedHost, vm_id: str) -> str:
        """A placement grant for the host, as the management server signs it."""
        pem = (self.world.site / "management/principal-key.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError("the principal's key is not on a curve")
        now = int(time.time())
        grant = PlacementGrant(str(uuid.uuid4()), "management", vm_id, host.host_id, 1, now, now + 600)
        return sign_grant(grant, key)

    def key_provider(self, host: AttestedHost) -> grpc.Channel:
        """A channel to the key provider service, as the attested host."""
        ca = (self.world.site / "trust-authority/ca.pem").read_bytes()
        return open_channel(
            self.world.plan.keyprovider, ClientTls(ca, host.certificate_pem, private_key_pem(host.tls_key))
        )


@contextlib.contextmanager
def running_site() -> Iterator[BenchSite]:
    """Start everything; stop everything at the end."""
    good = Recording.load("good")
    with tempfile.TemporaryDirectory(prefix="gb-") as scratch, contextlib.ExitStack() as stack:
        stack.callback(stop_all_descendants)
        world = World.lay_out(Path(scratch), choose_ports(8, 0), ())
        world.machines["a"].boot(good)
        world.start_services()
        world.prepare_trust(good)
        settings = AgentSettings.load(world.site / "hosts/a/agent.toml")
        state = StateDirectory(settings.state_directory)
        stack.callback(state.close)
        tpm = ReopeningTpm(settings.tcti or "")
        stack.callback(tpm.close)
        enroller = Enroller(
            host_name=settings.name,
            state=state,
            tpm=tpm,
            connect=GrpcTrustAuthority,
            offer=settings.enrolment_offer,
        )
        logs = LogFiles(settings.log_paths(), settings.command_line)
        enrolment = enroller.ensure()
        warm = _WarmAuthority(enrolment.authority)
        sessions = [
            AttestationSession(enroller=enroller, tpm=tpm, logs=logs, connect=connect, clock=_clock)
            for connect in (lambda _authority: warm, GrpcTrustAuthority)
        ]
        for session in sessions:
            session.renew(None)
        yield BenchSite(world, tpm, *sessions)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


__all__ = ["PROVIDER", "BenchSite", "running_site"]
