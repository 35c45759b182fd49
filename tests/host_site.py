"""A whole site for tests of the host agent: real services as processes, hosts with real software TPMs.

The site is made as ``garant init`` makes it. The test plays the management server towards the agents, with that
server's own certificate and principal key, so that it chooses the grants.
"""

import contextlib
import datetime
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.attester.tpm import Tpm
from attestation.model import HostId
from attestation.simulator.boot import Recording, play
from attestation.wire.tpm_public import parse_tpm_public
from cli.site import HostPlan, SitePlan, make_site
from garant.attestation.v1 import admin_pb2, admin_pb2_grpc
from garant.host.v1 import host_pb2, host_pb2_grpc
from garant.keyprovider.v1 import keyprovider_pb2, keyprovider_pb2_grpc
from keyprovider.grant import PlacementGrant, sign_grant
from management.host_name import agent_server_name
from serving.client import ClientTls, call, open_channel
from swtpm.manufacture import manufacture
from swtpm.process import SoftwareTpm
from tests.software_tpm import EkCa, make_test_ek_ca

PROVIDER = "trusted"
REFERENCE = "good"
_POLICY = '{"name": "test", "version": 1, "bank": "sha256", "pcrs": [0, 2, 4, 7, 9, 11]}'
_READY_SECONDS = 60.0

Seen = TypeVar("Seen")


@dataclass
class Machine:
    """A host's hardware: its TPM, and the log that its firmware left."""

    name: str
    directory: Path
    host_id: str = ""
    """As the TPM itself tells it; known once the machine was built."""
    tpm: SoftwareTpm | None = None

    @property
    def tcti(self) -> str:
        """Where the agent finds the TPM."""
        return f"swtpm:path={self.directory / 'tpm'}"

    def build(self, ek_ca: EkCa) -> None:
        """Manufacture the TPM."""
        self.directory.mkdir(parents=True)
        manufacture(self.directory / "state", key=None, certify=ek_ca.certify)
        with (
            SoftwareTpm.start(self.directory / "state", self.directory / "tpm"),
            Tpm.open(self.tcti) as tpm,
        ):
            self.host_id = HostId.of_spki(parse_tpm_public(tpm.endorsement_key().public).spki()).text

    def boot(self, recording: Recording) -> None:
        """Power on, or off and on, into a recorded boot."""
        self.power_off()
        self.tpm = SoftwareTpm.start(self.directory / "state", self.directory / "tpm")
        with Tpm.open(self.tcti) as tpm:
            play(recording, tpm.extend)
        (self.directory / "log").write_bytes(recording.log)

    def power_off(self) -> None:
        """Take the TPM away."""
        if self.tpm is not None:
            self.tpm.stop()
            self.tpm = None


@dataclass
class Daemon:
    """A process of the site and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    since: int

    def wait_ready(self) -> None:
        """Wait until it says that it serves.

        Raises:
            AssertionError: It ended, or said nothing in time.
        """
        wait_for(lambda: b'"event": "ready"' in self.told() or self.process.poll() is not None, _READY_SECONDS)
        assert self.process.poll() is None, self.told().decode(errors="replace")

    def told(self) -> bytes:
        """What it logged since its start."""
        return self.log.read_bytes()[self.since :]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


@dataclass
class HostSite:
    """Services and hosts."""

    directory: Path
    plan: SitePlan
    machines: dict[str, Machine]
    ek_ca: EkCa
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @classmethod
    def lay_out(cls, directory: Path, admitted: tuple[str, ...], strangers: tuple[str, ...] = ()) -> "HostSite":
        """Make the site and its machines; nothing runs yet. ``strangers`` get no enrolment token."""
        names = (*admitted, *strangers)
        public, admin, keyprovider, management, join, *agents = free_addresses(5 + len(names))
        machines = {name: Machine(name, directory / "m" / name) for name in names}
        ek_ca = make_test_ek_ca()
        for machine in machines.values():
            machine.build(ek_ca)
        hosts = tuple(
            HostPlan(name, address, machine.tcti, machine.directory / "log", admitted=name in admitted)
            for (name, machine), address in zip(machines.items(), agents, strict=True)
        )
        plan = SitePlan("test", public, admin, keyprovider, management, join, provider=PROVIDER, hosts=hosts)
        make_site(directory / "site", plan, now=datetime.datetime.now(datetime.UTC))
        return cls(directory, plan, machines, ek_ca)

    @property
    def site(self) -> Path:
        """The site's directory."""
        return self.directory / "site"

    def start_services(self, *names: str) -> None:
        """Start these of attestation, keyprovider, management (all by default), and wait until they serve."""
        names = names or ("attestation", "keyprovider", "management")
        for name in names:
            base = self.site / ("management" if name == "management" else f"trust-authority/{name}")
            self.daemons[name] = self._start(name, name, base / f"{name}.toml")
        for name in names:
            self.daemons[name].wait_ready()

    def start_agent(self, name: str) -> Daemon:
        """Start a host's agent and wait for its word."""
        self.daemons[name] = self.spawn_agent(name)
        self.daemons[name].wait_ready()
        return self.daemons[name]

    def spawn_agent(self, name: str) -> Daemon:
        """Start a host's agent that may end at once; the caller ends it."""
        return self._start(name, "host_agent", self.site / "hosts" / name / "agent.toml")

    def prepare_trust(self, recording: Recording) -> None:
        """What trust administrators decide before the first host comes."""
        pem = self.ek_ca.certificate.public_bytes(serialization.Encoding.PEM).decode()
        anchor = admin_pb2.Anchor(name="vendor", certificate_pem=pem, allow_virtual=True)
        with self.attestation() as attestation:
            call(attestation.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
            call(attestation.PutPolicy, admin_pb2.PutPolicyRequest(document=_POLICY))
            call(attestation.PutReference, admin_pb2.PutReferenceRequest(name=REFERENCE, event_log=recording.log))
        principal = serialization.load_pem_public_key((self.site / "management/principal.pub.pem").read_bytes())
        der = principal.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        with open_channel(self.plan.keyprovider, self.tls("trust-admin", "trust-authority/ca.pem")) as channel:
            stub = keyprovider_pb2_grpc.KeyProviderAdminServiceStub(channel)
            backend = keyprovider_pb2.BACKEND_SOFTWARE
            call(stub.CreateProvider, keyprovider_pb2.CreateProviderRequest(name=PROVIDER, backend=backend))
            request = keyprovider_pb2.RegisterPrincipalRequest(name="management", public_key=der)
            call(stub.RegisterPrincipal, request)

    @contextlib.contextmanager
    def attestation(self) -> Iterator[admin_pb2_grpc.AttestationAdminServiceStub]:
        """The attestation service, as a trust administrator."""
        with open_channel(self.plan.attestation_admin, self.tls("trust-admin", "trust-authority/ca.pem")) as channel:
            yield admin_pb2_grpc.AttestationAdminServiceStub(channel)

    @contextlib.contextmanager
    def agent(self, name: str, *, caller: str = "management") -> Iterator[host_pb2_grpc.HostServiceStub]:
        """A host's agent, as the management server, or with the certificate of another ``caller``."""
        plan = next(host for host in self.plan.hosts if host.name == name)
        options = [("grpc.ssl_target_name_override", agent_server_name(name, self.machines[name].host_id))]
        with open_channel(plan.agent_address, self.tls(caller, "management/host-ca.pem"), options=options) as channel:
            yield host_pb2_grpc.HostServiceStub(channel)

    def status(self, name: str) -> host_pb2.GetHostStatusResponse:
        """How a host says it is."""
        with self.agent(name) as agent:
            return call(agent.GetHostStatus, host_pb2.GetHostStatusRequest(), wait=True)

    def wait_attested(self, name: str) -> host_pb2.GetHostStatusResponse:
        """Wait until a host is attested."""
        return wait_for(lambda: status if (status := self.status(name)).attested else None, 60.0)

    def grant(self, name: str, vm_id: str) -> str:
        """Sign a placement grant as the management server."""
        pem = (self.site / "management/principal-key.pem").read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        now = int(time.time())
        grant = PlacementGrant(
            grant_id=str(uuid.uuid4()),
            principal="management",
            vm_id=vm_id,
            host_id=HostId(self.machines[name].host_id),
            generation=time.time_ns(),
            issued_at=now,
            expires_at=now + 120,
        )
        return sign_grant(grant, key)

    def tls(self, who: str, ca: str) -> ClientTls:
        """Certificate and key of ``who``; believes servers of ``ca``."""
        leaf = self.site / who
        return ClientTls.load(self.site / ca, leaf / "certificate.pem", leaf / "private-key.pem")

    def close(self) -> None:
        """End every process, VMs included."""
        for daemon in self.daemons.values():
            daemon.process.terminate()
        for daemon in self.daemons.values():
            daemon.end()
        for machine in self.machines.values():
            machine.power_off()
        _end_processes_below(self.directory)

    def _start(self, name: str, module: str, config: Path) -> Daemon:
        log = self.directory / f"{name}.log"
        since = log.stat().st_size if log.exists() else 0
        with log.open("ab") as target:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(config)],
                stdin=subprocess.DEVNULL,
                stdout=target,
                stderr=target,
                start_new_session=True,
            )
        return Daemon(process, log, since)


def free_addresses(count: int) -> list[str]:
    """Loopback addresses whose ports nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]


def wait_for(look: Callable[[], Seen | None], seconds: float = 30.0) -> Seen:
    """Look until something is there.

    Raises:
        AssertionError: Nothing was, in time.
    """
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"nothing came within {seconds} s"
        time.sleep(0.05)
    return seen


def _end_processes_below(directory: Path) -> None:
    """End QEMU and vTPM processes of this site's VMs: they outlive their agent."""
    needle = f"{directory}/".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and needle in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
