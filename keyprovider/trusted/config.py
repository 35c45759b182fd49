"""The key provider service's configuration file (TOML; paths relative to the file's directory)."""

import stat
from collections.abc import Callable
from pathlib import Path

import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from pydantic import Field

from keyprovider.trusted.ports import HeadSigner
from keyprovider.trusted.tree_head import TreeHead, sign_tree_head
from serving.config import FilePath, ListenerSettings, Settings
from serving.errors import ConfigError
from serving.jws import key_id

_log = structlog.get_logger("keyprovider")


class AttestationSettings(Settings):
    """Where the attestation service answers, for its heartbeat."""

    address: str
    """``host:port`` of its administrative port."""
    ca: FilePath
    """CA of its TLS certificate."""


class ReleaseSettings(Settings):
    """What is demanded of every release."""

    max_staleness_seconds: int = Field(default=300, ge=1, le=86_400)
    """How old the newest heartbeat may be. 300 is a token's life: an attestation service restart is no outage."""
    minimum_policy_version: int = Field(default=0, ge=0)
    """Policy that a host must at least have been appraised under."""


class KeyProviderSettings(Settings):
    """The whole file."""

    site: str
    """Name of the site, whose attestation service issues the tokens."""
    database: str
    """SQLAlchemy URL: ``sqlite:////absolute/path.db`` or ``postgresql://…``."""
    trust_admin_ca: FilePath
    """CA of trust administrators."""
    attested_host_ca: FilePath
    """CA by which the attestation service signs for attested hosts."""
    management_ca: FilePath | None = None
    """CA of management servers, where they shall list providers."""
    token_keys: list[FilePath] = Field(min_length=1)
    """Public keys (PEM) that sign tokens and heartbeats, pinned."""
    audience: str
    """Whom tokens must be for."""
    primary_keys: FilePath
    """File of the software backend."""
    storage_key: FilePath
    """32 random bytes, mode 0600, that the file of primary keys is encrypted under."""
    log_key: FilePath | None = None
    """P-256 private key (PEM, mode 0600) that signs the heads of the release log; all services over one database have
    the same. Without it the log is kept, but no host gets anything to witness it by."""
    workers: int = Field(default=32, ge=1, le=1024)
    """Threads that serve calls; each release waits in one for its record."""
    listener: ListenerSettings
    attestation: AttestationSettings
    release: ReleaseSettings = ReleaseSettings()


def load_head_signer(path: Path | None, clock: Callable[[], int]) -> HeadSigner | None:
    """Read the log key; none where none is configured, which is said in the log.

    Args:
        path: As configured.
        clock: Gives seconds since the epoch.

    Returns:
        What signs tree heads.

    Raises:
        ConfigError: The file cannot be read, is readable by others, or holds no P-256 private key in PEM.
    """
    if path is None:
        _log.warning("the release log is not signed: hosts cannot witness it; configure a log_key")
        return None
    try:
        mode, content = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
        key = load_pem_private_key(content, password=None)
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{path} holds no private key in PEM") from exc
    if mode & 0o077:
        raise ConfigError(f"the log key {path} has mode {mode:04o}; expected 0600 (chmod 600)")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path} holds no P-256 private key")
    signing_key = key
    return lambda size, root: sign_tree_head(TreeHead(size, root, clock()), signing_key)


def load_token_keys(paths: list[Path]) -> dict[str, ec.EllipticCurvePublicKey]:
    """Read pinned keys, by key id.

    Raises:
        ConfigError: A file cannot be read, or holds no P-256 public key in PEM.
    """
    keys = {}
    for path in paths:
        try:
            key = load_pem_public_key(path.read_bytes())
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigError(f"{path} holds no public key in PEM") from exc
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConfigError(f"{path} holds no P-256 public key")
        keys[key_id(key)] = key
    return keys
