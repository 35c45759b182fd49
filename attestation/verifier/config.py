"""Configuration of the attestation service: one TOML file, unknown keys refused."""

from typing import Annotated

from pydantic import Field

from serving.config import FilePath, ListenerSettings, Settings


class AttestationSettings(Settings):
    """Everything that is configured."""

    site: Annotated[str, Field(pattern=r"^[a-z0-9.-]{1,253}$")]
    """Trust domain: host part of every identity."""
    database: str
    """``sqlite:////var/lib/…`` or ``postgresql://…``."""
    token_key: FilePath
    """PEM, P-256: signs tokens and heartbeats. Mode 0600."""
    cookie_key: FilePath
    """32 random bytes, shared by all replicas. Mode 0600."""
    host_ca_certificate: FilePath
    """PEM: issues the client certificates of attested hosts."""
    host_ca_key: FilePath
    """PEM, P-256. Mode 0600."""
    trust_admin_ca: FilePath
    """PEM: issues the certificates of trust administrators, who also sign join tokens."""
    service_ca: FilePath
    """PEM: issues the certificates of key provider services and attestation services."""
    provider_list: FilePath
    """Signed list of key providers (JWS), handed out at enrolment."""
    audience: Annotated[str, Field(min_length=1, max_length=256)]
    """For whom tokens are."""
    token_seconds: Annotated[int, Field(ge=10, le=3600)] = 300
    heartbeat_seconds: Annotated[int, Field(ge=1, le=3600)] = 60
    """How long a heartbeat is valid."""
    public: ListenerSettings
    """Enrolment and attestation: only the server proves itself."""
    admin: ListenerSettings
    """Administration and heartbeat: mutually authenticated."""
