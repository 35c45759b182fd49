"""How the ``garant`` command finds and reaches a site's services: a directory as ``garant init`` makes it.

The directory holds ``site.json`` (addresses and CAs) and the identities of administrators, ``trust-admin`` and
``vm-admin``, each with ``certificate.pem`` and ``private-key.pem``. Either may be absent: trust administrators and VM
administrators are different people.
"""

import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import grpc

from cli.errors import BadInput, Unreachable
from garant.attestation.v1.admin_pb2_grpc import AttestationAdminServiceStub
from garant.keyprovider.v1.keyprovider_pb2_grpc import KeyProviderAdminServiceStub
from garant.management.v1.management_pb2_grpc import ManagementServiceStub
from serving.client import ClientTls, call, open_channel
from serving.errors import RemoteError

Stub = TypeVar("Stub")
Answer = TypeVar("Answer")
TRUST_ADMIN = "trust-admin"
VM_ADMIN = "vm-admin"
_UNANSWERED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass(frozen=True, slots=True)
class Connection(Generic[Stub]):
    """A service of the site."""

    name: str
    """For messages."""
    address: str
    stub: Stub

    def call(self, method: Callable[..., Answer], request: object, *, timeout_seconds: float = 30.0) -> Answer:
        """Call a method of the stub.

        Raises:
            Unreachable: Nobody answered in time.
            RemoteError: The service refused.
        """
        try:
            return call(method, request, timeout_seconds=timeout_seconds)
        except RemoteError as exc:
            # A service that gave a reason of its own did answer, whatever its code.
            if exc.code in _UNANSWERED and exc.reason == exc.code.name:
                why = f"the {self.name} at {self.address} does not answer ({exc.message}); is it running?"
                raise Unreachable(why) from exc
            raise


@dataclass(frozen=True, slots=True)
class Site:
    """A site's directory, read."""

    directory: Path
    attestation_admin_address: str
    keyprovider_address: str
    management_address: str
    trust_authority_ca: Path
    management_ca: Path

    @classmethod
    def load(cls, directory: Path) -> "Site":
        """Read ``site.json``.

        Raises:
            BadInput: There is none, or it is not one.
        """
        path = directory / "site.json"
        try:
            data = json.loads(path.read_text())
            return cls(
                directory,
                str(data["attestation"]["admin"]),
                str(data["keyprovider"]),
                str(data["management"]),
                directory / data["cas"]["trust_authority"],
                directory / data["cas"]["management"],
            )
        except OSError as exc:
            hint = "name a site with --site or GARANT_SITE, or make one with `garant init`"
            raise BadInput(f"cannot read {path}: {exc.strerror}; {hint}") from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise BadInput(f"{path} does not describe a site") from exc

    def attestation(self) -> Connection[AttestationAdminServiceStub]:
        """The attestation service, as a trust administrator."""
        channel = self._channel(self.attestation_admin_address, self.trust_authority_ca, TRUST_ADMIN)
        return Connection("attestation service", self.attestation_admin_address, AttestationAdminServiceStub(channel))

    def keyprovider(self) -> Connection[KeyProviderAdminServiceStub]:
        """The key provider service, as a trust administrator."""
        channel = self._channel(self.keyprovider_address, self.trust_authority_ca, TRUST_ADMIN)
        return Connection("key provider service", self.keyprovider_address, KeyProviderAdminServiceStub(channel))

    def management(self) -> Connection[ManagementServiceStub]:
        """The management server, as a VM administrator."""
        channel = self._channel(self.management_address, self.management_ca, VM_ADMIN)
        return Connection("management server", self.management_address, ManagementServiceStub(channel))

    def _channel(self, address: str, ca: Path, who: str) -> grpc.Channel:
        identity = self.directory / who
        tls = ClientTls.load(ca, identity / "certificate.pem", identity / "private-key.pem")
        try:
            complaint = tls.complaint(datetime.datetime.now(datetime.UTC))
        except ValueError as exc:
            raise BadInput(f"{identity / 'certificate.pem'} holds no certificate") from exc
        if complaint is not None:
            raise BadInput(f"{identity / 'certificate.pem'}: {complaint}")
        return open_channel(address, tls)
