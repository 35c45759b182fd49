"""The demo's site: its directory, daemons and machines, and the steps that an operator would take by hand."""

import datetime
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization

from attestation.simulator.boot import Recording
from cli.demo.claims import ClaimFailed
from cli.demo.clients import Clients
from cli.demo.machines import Machine, TpmVendor, end_processes_under
from cli.demo.processes import Daemon
from cli.site import HostPlan, SitePlan, make_site
from garant.attestation.v1 import admin_pb2
from garant.host.v1 import host_pb2
from garant.keyprovider.v1 import keyprovider_pb2
from garant.management.v1 import management_pb2
from serving.client import call
from serving.errors import RemoteError

SITE = "garant.demo"
PROVIDER = "trusted-demo"
GOOD_BOOT = "good-boot"
_POLICY = '{"name": "demo", "version": 1, "bank": "sha256", "pcrs": [0, 2, 4, 7, 9, 11]}'
Seen = TypeVar("Seen")


@dataclass
class World:
    """Everything that the demo runs."""

    directory: Path
    plan: SitePlan
    vendor: TpmVendor
    machines: dict[str, Machine]
    daemons: dict[str, Daemon] = field(default_factory=dict)

    @classmethod
    def lay_out(cls, directory: Path, ports: list[int], images: tuple[Path, ...]) -> "World":
        """Make the machines and the site, with nothing running yet.

        Args:
            directory: Empty.
            ports: Eight free loopback ports.
            images: Directories of the disk image and the guest's kernel.
        """
        vendor = TpmVendor.found()
        machines = {name: Machine(name, directory / "machines" / name) for name in ("a", "b", "c")}
        for machine in machines.values():
            machine.build(vendor)
        public, admin, keyprovider, management, join, *agents = (f"127.0.0.1:{port}" for port in ports)
        hosts = tuple(
            HostPlan(name, address, machine.tcti, machine.event_log, machine.command_line, images, admitted=name != "c")
            for (name, machine), address in zip(machines.items(), agents, strict=True)
        )
        plan = SitePlan(SITE, public, admin, keyprovider, management, join, provider=PROVIDER, hosts=hosts)
        make_site(directory / "site", plan, now=datetime.datetime.now(datetime.UTC))
        return cls(directory, plan, vendor, machines)

    @property
    def site(self) -> Path:
        """The site's directory."""
        return self.directory / "site"

    @property
    def clients(self) -> Clients:
        """Stubs to the services."""
        return Clients(self.site, self.plan)

    def start_services(self) -> None:
        """Start attestation service, key provider service and management server, and wait until they serve."""
        configs = {
            "attestation": self.site / "trust-authority/attestation/attestation.toml",
            "keyprovider": self.site / "trust-authority/keyprovider/keyprovider.toml",
            "management": self.site / "management/management.toml",
        }
        for name, config in configs.items():
            self.daemons[name] = Daemon.start(name, name, config, self._log(name))
        for name in configs:
            self.daemons[name].wait_ready()

    def prepare_trust(self, recording: Recording) -> None:
        """What the trust administrator decides: TPM vendor, policy, reference boot, provider, management server."""
        attestation, keyprovider = self.clients.attestation, self.clients.keyprovider
        pem = self.vendor.certificate.public_bytes(serialization.Encoding.PEM).decode()
        anchor = admin_pb2.Anchor(name="demo-tpm-vendor", certificate_pem=pem, allow_virtual=True)
        call(attestation.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
        call(attestation.PutPolicy, admin_pb2.PutPolicyRequest(document=_POLICY))
        self.put_reference(recording)
        request = keyprovider_pb2.CreateProviderRequest(name=PROVIDER, backend=keyprovider_pb2.BACKEND_SOFTWARE)
        call(keyprovider.CreateProvider, request)
        principal = serialization.load_pem_public_key((self.site / "management/principal.pub.pem").read_bytes())
        der = principal.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        call(
            keyprovider.RegisterPrincipal,
            keyprovider_pb2.RegisterPrincipalRequest(name="management", public_key=der),
        )
        register = management_pb2.RegisterProviderRequest(name=PROVIDER, default=True)
        call(self.clients.management.RegisterProvider, register)

    def put_reference(self, recording: Recording | None = None) -> None:
        """Trust the recorded boot, or bring it back after it was withdrawn."""
        request = admin_pb2.PutReferenceRequest(name=GOOD_BOOT)
        if recording is not None:
            request.event_log = recording.log
            request.command_line = recording.command_line
        call(self.clients.attestation.PutReference, request)

    def withdraw_reference(self) -> None:
        """Trust the boot no longer."""
        call(self.clients.attestation.WithdrawReference, admin_pb2.WithdrawReferenceRequest(name=GOOD_BOOT))

    def start_agent(self, name: str) -> None:
        """Start a host's agent and wait until it serves."""
        log = self._log(f"host-{name}")
        since = log.stat().st_size if log.exists() else 0
        config = self.site / "hosts" / name / "agent.toml"
        self.daemons[name] = Daemon.start(f"host agent {name}", "host_agent", config, log)
        self.daemons[name].wait_ready(since=since)

    def reset_machine(self, name: str, recording: Recording) -> None:
        """Cut a machine's power and boot it again: its agent, VMs and vTPMs end, its TPM begins anew."""
        end_processes_under(self.site / "hosts" / name)
        self.machines[name].boot(recording)
        self.start_agent(name)

    def host(self, name: str) -> management_pb2.Host:
        """What the management server knows of a host.

        Raises:
            ClaimFailed: The host did not join.
        """
        for host in call(self.clients.management.ListHosts, management_pb2.ListHostsRequest()).hosts:
            if host.name == name:
                return host
        raise ClaimFailed(f"host {name} did not join the management server")

    def trusted_host(self, name: str) -> admin_pb2.Host:
        """What the trust authority knows of a host.

        Raises:
            ClaimFailed: It does not know the host.
        """
        try:
            return call(self.clients.attestation.GetHost, admin_pb2.GetHostRequest(host=name)).host
        except RemoteError as exc:
            raise ClaimFailed(f"the trust authority does not know host {name}: {exc}") from exc

    def attest(self, name: str) -> host_pb2.AttestResponse:
        """Let a host attest now."""
        return call(self.clients.host(name).Attest, host_pb2.AttestRequest())

    def vm(self, name: str) -> management_pb2.Vm:
        """What the management server knows of a VM."""
        return call(self.clients.management.GetVm, management_pb2.GetVmRequest(vm=name)).vm

    def console(self, vm: str, offset: int = 0) -> bytes:
        """All that a VM has written to its serial console from ``offset`` on."""
        output = b""
        while True:
            request = management_pb2.ReadConsoleRequest(vm=vm, offset=offset)
            answer = call(self.clients.management.ReadConsole, request)
            if not answer.output:
                return output
            output += answer.output
            offset = answer.next_offset

    def _log(self, name: str) -> Path:
        directory = self.directory / "logs"
        directory.mkdir(exist_ok=True)
        return directory / f"{name}.log"


def wait_for(look: Callable[[], Seen | None], *, seconds: float, failure: Callable[[], str]) -> Seen:
    """Look until something is there.

    Raises:
        ClaimFailed: Nothing was, in time; with the message of ``failure``.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen = look()
        if seen:
            return seen
        if time.monotonic() > deadline:
            raise ClaimFailed(failure())
        time.sleep(0.1)
