"""Configuration of the management server: one TOML file."""

from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from management.privileges import Role
from serving.authority import CertificateAuthority
from serving.config import FilePath, ListenerSettings, Settings
from serving.errors import ConfigError


class ManagementSettings(Settings):
    """What the file says. Relative paths are taken from its directory."""

    site: str
    database: str
    """URL: ``sqlite:////path`` or ``postgresql://…``."""
    cluster: str
    administrators: tuple[str, ...] = ()
    """Names (in their certificates) of VM administrators with all privileges."""
    no_cryptography_administrators: tuple[str, ...] = ()
    """VM administrators with all privileges but the cryptographic ones."""
    read_only: tuple[str, ...] = ()
    """VM administrators who may look."""
    management_ca: FilePath
    """CA of this server's own certificate; hosts are told to accept its callers."""
    vm_admin_ca: FilePath
    """CA of the VM administrators' certificates."""
    host_ca_certificate: FilePath
    """CA that signs join identities of hosts, and its key."""
    host_ca_key: FilePath
    principal: str
    """Name of this server at the trust authority."""
    principal_key: FilePath
    """P-256 key that signs placement grants."""
    listener: ListenerSettings
    """Port for VM administrators. Its certificate is also shown to hosts."""
    join: ListenerSettings
    """Port for hosts that want to join."""

    def roles(self) -> dict[str, Role]:
        """Role of each named administrator.

        Raises:
            ConfigError: Somebody has two.
        """
        roles: dict[str, Role] = {}
        for role, names in (
            (Role.ADMINISTRATOR, self.administrators),
            (Role.NO_CRYPTOGRAPHY_ADMINISTRATOR, self.no_cryptography_administrators),
            (Role.READ_ONLY, self.read_only),
        ):
            for name in names:
                if name in roles:
                    raise ConfigError(f"{name} has two roles: {roles[name]} and {role}")
                roles[name] = role
        return roles


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate from a PEM file.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as exc:
        raise ConfigError(f"{path} holds no certificate") from exc


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key from a PEM file.

    Raises:
        ConfigError: It cannot be read, or is of another kind.
    """
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{path} holds no private key") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError(f"{path}: expected a P-256 key")
    return key


def load_authority(certificate: Path, key: Path) -> CertificateAuthority:
    """Read an issuing CA.

    Raises:
        ConfigError: A file cannot be read, or the key is not the certificate's.
    """
    authority = CertificateAuthority(load_certificate(certificate), load_key(key))
    if authority.certificate.public_key() != authority.key.public_key():
        raise ConfigError(f"{key} is not the key of {certificate}")
    return authority


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
