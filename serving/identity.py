"""Who is who: roles in URI subject alternative names, one issuer per role.

An identity is ``spiffe://SITE/ROLE/NAME``. A certificate proves it only if the issuer of that very role signed it:
gRPC reports the leaf alone, so the issuer is checked by signature, here.
"""

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from serving.errors import IdentityError

_UNREADABLE = (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
"""What ``cryptography`` raises for extensions that are missing or that it does not read."""
_URI = re.compile(r"spiffe://([a-z0-9.-]{1,253})/([a-z-]{1,64})/([A-Za-z0-9._-]{1,253})")


class Role(StrEnum):
    """What a certificate entitles to; each role has an issuer of its own."""

    TRUST_ADMIN = "trust-admin"
    ATTESTATION_SERVICE = "attestation-service"
    KEY_PROVIDER_SERVICE = "key-provider-service"
    ATTESTED_HOST = "attested-host"
    MANAGEMENT_SERVER = "management-server"
    VM_ADMIN = "vm-admin"
    JOINED_HOST = "joined-host"


@dataclass(frozen=True, slots=True)
class Identity:
    """A role and a name within a site."""

    site: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """As it stands in certificates."""
        return f"spiffe://{self.site}/{self.role}/{self.name}"

    def __str__(self) -> str:
        """For logs and events."""
        return f"{self.role}/{self.name}"


@dataclass(frozen=True, slots=True)
class Caller:
    """A proven identity and the certificate that proved it."""

    identity: Identity
    certificate: x509.Certificate


def claimed_identity(certificate: x509.Certificate) -> Identity:
    """Read the identity that a certificate claims; nothing is proven by that.

    Raises:
        IdentityError: It does not have exactly one URI name of ours.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except _UNREADABLE as exc:
        raise IdentityError("the certificate has no subject alternative name") from exc
    if len(uris) != 1:
        raise IdentityError(f"expected one URI name in the certificate, found {len(uris)}")
    match = _URI.fullmatch(uris[0])
    if match is None or match[2] not in set(Role):
        raise IdentityError(f"the certificate's name {uris[0][:100]!r} is not an identity of this product")
    return Identity(site=match[1], role=Role(match[2]), name=match[3])


def prove_caller(
    certificate: x509.Certificate, issuers: Mapping[Role, tuple[x509.Certificate, ...]], now: datetime.datetime
) -> Caller:
    """Check a client certificate against the issuers of the role it claims.

    Args:
        certificate: The TLS peer's leaf.
        issuers: CA certificates per role; a role that is absent is not accepted.
        now: Current time, aware. A connection outlives its certificate, so each call is checked anew.

    Raises:
        IdentityError: No identity, no issuer for its role, not signed by it, outside its validity, or not for clients.
    """
    identity = claimed_identity(certificate)
    if not any(_issued_by(certificate, issuer) for issuer in issuers.get(identity.role, ())):
        raise IdentityError(f"the certificate of {identity} was not signed by the issuer of that role")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise IdentityError(
            f"the certificate of {identity} is valid from {certificate.not_valid_before_utc:%FT%TZ} "
            f"to {certificate.not_valid_after_utc:%FT%TZ}; it is {now:%FT%TZ}"
        )
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except _UNREADABLE as exc:
        raise IdentityError(f"the certificate of {identity} states no extended key usage") from exc
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise IdentityError(f"the certificate of {identity} is not for clients")
    return Caller(identity, certificate)


def _issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True
