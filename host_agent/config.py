"""The host agent's configuration file (TOML; paths relative to the file's directory)."""

import uuid
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from attestation.model import LogKind
from host_agent.model import EnrolmentOffer, TrustAuthority
from serving.config import FilePath, Settings
from serving.errors import ConfigError, JoinTokenError
from serving.join_token import JoinInvitation, read_join_token

_MAX_TOKEN_BYTES = 64 * 1024
_HOST_PORT = r"^.+:[1-9][0-9]{0,4}$"


def _uuid_text(text: str) -> str:
    return str(uuid.UUID(text))


class ListenerSettings(Settings):
    """The agent's own port; its certificate comes from the management server."""

    address: Annotated[str, Field(pattern=_HOST_PORT)]
    """``host:port`` to listen on."""
    advertised: Annotated[str, Field(pattern=_HOST_PORT)] | None = None
    """``host:port`` where the management server reaches the agent, if that is another one."""

    @property
    def reached_at(self) -> str:
        """What the management server is told."""
        return self.advertised or self.address


class TrustAuthoritySettings(Settings):
    """Where the trust authority is, for a host without an enrolment token, or where it moved."""

    address: str
    """``host:port`` of the port for enrolment and attestation."""
    ca: FilePath
    """Its CA certificate."""


class AgentSettings(Settings):
    """The whole file."""

    site: str
    """Name of the site."""
    name: str = Field(min_length=1, max_length=253)
    """Name of this host."""
    hardware_uuid: Annotated[str, AfterValidator(_uuid_text)]
    """DMI product UUID."""
    tcti: str | None = None
    """The TPM, as tpm2-tss names it: ``device:/dev/tpmrm0``, ``swtpm:path=/run/tpm.sock``."""
    event_log: FilePath | None = None
    """The firmware's log: ``/sys/kernel/security/tpm0/binary_bios_measurements``."""
    ima_log: FilePath | None = None
    """The kernel's: ``/sys/kernel/security/ima/binary_runtime_measurements``."""
    command_line: FilePath = Path("/proc/cmdline")
    """Where the kernel shows its command line, which refusals then show to trust administrators."""
    state_directory: FilePath
    """Mode 0700: enrolment, pinned provider list, join identity."""
    vm_directory: FilePath
    """Where VMs lie."""
    run_directory: FilePath
    """Mode 0700, on tmpfs: sockets of running VMs."""
    image_directories: tuple[FilePath, ...] = ()
    """Where images, kernels and initial RAM disks that the management server names may lie; none: nowhere."""
    listener: ListenerSettings
    enrolment_token: FilePath | None = None
    """Join token of a trust administrator. May be removed once the host is enrolled."""
    join_token: FilePath | None = None
    """Join token of a VM administrator. May be removed once the host has joined."""
    trust_authority: TrustAuthoritySettings | None = None

    @model_validator(mode="after")
    def _needs_a_tpm(self) -> Self:
        if self.tcti is None:
            raise ValueError("a host without a TPM is not supported yet: set tcti")
        return self

    def log_paths(self) -> dict[LogKind, Path]:
        """The measurement logs that this host has."""
        paths = {LogKind.TCG: self.event_log, LogKind.IMA: self.ima_log}
        return {kind: path for kind, path in paths.items() if path is not None}

    def enrolment_offer(self) -> EnrolmentOffer | None:
        """How to enrol: by token, else by an administrator's approval, else not at all.

        Raises:
            ConfigError: A file cannot be read, or the token is not one for this host.
        """
        if self.enrolment_token is not None:
            text, invitation = self._invitation(self.enrolment_token)
            return EnrolmentOffer(TrustAuthority(invitation.address, invitation.ca_pem), text)
        if self.trust_authority is not None:
            ca_pem = _read(self.trust_authority.ca)
            return EnrolmentOffer(TrustAuthority(self.trust_authority.address, ca_pem))
        return None

    def join_invitation(self) -> tuple[str, JoinInvitation] | None:
        """How to join: the token and what it says; None where none is configured.

        Raises:
            ConfigError: The file cannot be read, or the token is not one for this host.
        """
        return None if self.join_token is None else self._invitation(self.join_token)

    def _invitation(self, path: Path) -> tuple[str, JoinInvitation]:
        try:
            text = _read(path).decode("ascii").strip()
            invitation = read_join_token(text)
        except (UnicodeDecodeError, JoinTokenError) as exc:
            raise ConfigError(f"{path} holds no join token") from exc
        if invitation.host_name != self.name:
            raise ConfigError(f"the join token in {path} is for host {invitation.host_name!r}, not {self.name!r}")
        return text, invitation


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as source:
            return source.read(_MAX_TOKEN_BYTES)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
