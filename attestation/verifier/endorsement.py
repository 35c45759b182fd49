"""Trust in endorsement keys: template, certificate chain, and that the certificate is of this very key.

Checks, in order:

1. the public area is the template's, bit for bit, up to the key itself: attributes, policy, symmetric algorithm, sizes;
2. there is a certificate and it can be read;
3. a chain leads from it to an anchor, every certificate is within its validity, CAs are CAs, and the leaf is an
   endorsement key certificate (not a CA; names a TPM; usages as its profile has them);
4. a software TPM's certificate rests on an anchor that admits software TPMs;
5. certificate and public area hold the same key.

Endorsement key certificates break the rules of the web (critical SAN with a directory name, EKU 2.23.133.8.1, key
encipherment only), so the extension policy is our own. Certificate policies are tolerated where critical: vendors mark
them so. CAs may lack KeyUsage, as some vendors' do (RFC 5280 then restricts nothing); where it is present it must allow
signing certificates. Revocation lists are deliberately not read here.

Source: TCG EK Credential Profile 2.x, section 3 and annex B; RFC 5280.
Pure: time is passed in.
"""

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.verification import Criticality, ExtensionPolicy

from attestation.errors import EnrollmentReason, EnrollmentRejected, PolicyRejected, WireError
from attestation.model import EkTemplate, HostId
from attestation.verifier.credential import CredentialScheme
from attestation.wire.tpm_public import parse_tpm_public

MAX_CERTIFICATE_BYTES = 8 * 1024
MAX_INTERMEDIATES = 8
_EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
_TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
_TPM_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
_TPM_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
_SOFTWARE_TPM_MODELS = frozenset({"swtpm"})

_UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for certificates that it does not read."""

_LOW_ATTRIBUTES = 0x000300B2
"""fixedTPM, fixedParent, sensitiveDataOrigin, adminWithPolicy, restricted, decrypt."""
_HIGH_ATTRIBUTES = 0x000300F2
"""The same and userWithAuth."""
_LOW_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
_HIGH_POLICY_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_HIGH_POLICY_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
_RSA, _ECC, _NULL, _AES, _CFB = 0x0001, 0x0023, 0x0010, 0x0006, 0x0043
_SHA256, _SHA384 = 0x000B, 0x000C
_P256, _P384 = 0x0003, 0x0004


def _area(kind: int, name_alg: int, attributes: int, policy: bytes, aes_bits: int, size: int) -> bytes:
    """TPMT_PUBLIC of a template, up to ``unique``."""
    head = kind.to_bytes(2, "big") + name_alg.to_bytes(2, "big") + attributes.to_bytes(4, "big")
    fields = [_AES, aes_bits, _CFB, _NULL, size] + ([0, 0] if kind == _RSA else [_NULL])
    return head + len(policy).to_bytes(2, "big") + policy + b"".join(field.to_bytes(2, "big") for field in fields)


_AREAS: Mapping[EkTemplate, bytes] = {
    EkTemplate.RSA_2048_LOW: _area(_RSA, _SHA256, _LOW_ATTRIBUTES, _LOW_POLICY, 128, 2048),
    EkTemplate.ECC_P256_LOW: _area(_ECC, _SHA256, _LOW_ATTRIBUTES, _LOW_POLICY, 128, _P256),
    EkTemplate.RSA_2048_HIGH: _area(_RSA, _SHA256, _HIGH_ATTRIBUTES, _HIGH_POLICY_SHA256, 128, 2048),
    EkTemplate.ECC_P256_HIGH: _area(_ECC, _SHA256, _HIGH_ATTRIBUTES, _HIGH_POLICY_SHA256, 128, _P256),
    EkTemplate.ECC_P384_HIGH: _area(_ECC, _SHA384, _HIGH_ATTRIBUTES, _HIGH_POLICY_SHA384, 256, _P384),
    EkTemplate.RSA_3072_HIGH: _area(_RSA, _SHA384, _HIGH_ATTRIBUTES, _HIGH_POLICY_SHA384, 256, 3072),
}
_SCHEME_LOW = CredentialScheme(hashes.SHA256(), 128)
_SCHEME_SHA384 = CredentialScheme(hashes.SHA384(), 256)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A CA that endorsement key certificates may rest on."""

    name: str
    certificate: x509.Certificate
    allow_virtual: bool
    """Admits software TPMs, whose root is the machine that runs them."""


@dataclass(frozen=True, slots=True)
class EndorsementKey:
    """An endorsement key that has its template's public area; whether it is a genuine TPM's is not said by that."""

    template: EkTemplate
    public_area: bytes
    """TPMT_PUBLIC."""
    spki: bytes
    """SubjectPublicKeyInfo, DER, encoded anew from the public area."""
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey
    scheme: CredentialScheme

    @property
    def host_id(self) -> HostId:
        """Identity of the host whose TPM this is."""
        return HostId.of_spki(self.spki)


def read_anchor(name: str, certificate_pem: bytes, *, allow_virtual: bool) -> Anchor:
    """Read an anchor as an administrator gives it.

    Raises:
        PolicyRejected: Not exactly one certificate, not a CA, or it may not sign certificates. A leaf among the
            anchors would vouch for itself.
    """
    try:
        certificates = x509.load_pem_x509_certificates(certificate_pem)
        extensions = certificates[0].extensions
    except _UNREADABLE as exc:
        raise PolicyRejected(f"anchor {name!r}: the certificate cannot be read") from exc
    if len(certificates) != 1:
        raise PolicyRejected(f"anchor {name!r}: expected one certificate, got {len(certificates)}")
    try:
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    if not is_ca:
        raise PolicyRejected(f"anchor {name!r}: the certificate is not that of a certificate authority")
    try:
        may_sign = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        may_sign = True
    if not may_sign:
        raise PolicyRejected(f"anchor {name!r}: the certificate's key usage does not allow it to sign certificates")
    return Anchor(name, certificates[0], allow_virtual)


def read_endorsement_key(template: EkTemplate, public_area: bytes) -> EndorsementKey:
    """Check a public area against the template that it claims.

    Raises:
        EnrollmentRejected: EK_TEMPLATE_MISMATCH.
    """
    if not public_area.startswith(_AREAS[template]):
        message = f"the endorsement key's public area is not that of template {template}"
        raise EnrollmentRejected(EnrollmentReason.EK_TEMPLATE_MISMATCH, message)
    try:
        spki = parse_tpm_public(public_area).spki()
        key = serialization.load_der_public_key(spki)
    except (WireError, ValueError) as exc:
        message = "the endorsement key's public area is malformed"
        raise EnrollmentRejected(EnrollmentReason.EK_TEMPLATE_MISMATCH, message) from exc
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
        raise EnrollmentRejected(EnrollmentReason.EK_TEMPLATE_MISMATCH, "the endorsement key is neither RSA nor ECC")
    strong = template in (EkTemplate.ECC_P384_HIGH, EkTemplate.RSA_3072_HIGH)
    return EndorsementKey(template, public_area, spki, key, _SCHEME_SHA384 if strong else _SCHEME_LOW)


def require_endorsed(
    endorsement_key: EndorsementKey,
    *,
    certificate: bytes,
    intermediates: Sequence[bytes],
    anchors: Sequence[Anchor],
    now: datetime.datetime,
) -> Anchor:
    """Check that an anchor vouches for the key as that of a TPM.

    Args:
        endorsement_key: As its template has it.
        certificate: Its certificate, DER; may be empty.
        intermediates: Certificates for path building, DER; they prove nothing. Unreadable ones are passed over.
        anchors: What the trust administrators put in.
        now: Current time, aware.

    Returns:
        The anchor that the chain ends in.

    Raises:
        EnrollmentRejected: EK_CERTIFICATE_MISSING, EK_CERTIFICATE_MALFORMED, EK_CERTIFICATE_UNTRUSTED,
            VIRTUAL_TPM_NOT_ALLOWED or EK_CERTIFICATE_OF_OTHER_KEY, in that order.
    """
    leaf, leaf_spki, model = _read_certificate(certificate)
    path_help = _readable(intermediates)
    virtual = model.lower() in _SOFTWARE_TPM_MODELS
    # A software TPM is first tried on the anchors that admit it, so that a second path to another cannot refuse it.
    usable = [anchor for anchor in anchors if anchor.allow_virtual or not virtual]
    anchor = _find_anchor(leaf, path_help, usable, now)
    if anchor is None and virtual and _find_anchor(leaf, path_help, anchors, now) is not None:
        message = f"the certificate is that of a software TPM ({model}), which its anchor does not admit"
        raise EnrollmentRejected(EnrollmentReason.VIRTUAL_TPM_NOT_ALLOWED, message)
    if anchor is None:
        message = "no chain of valid certificates leads from the endorsement key's to an anchor"
        raise EnrollmentRejected(EnrollmentReason.EK_CERTIFICATE_UNTRUSTED, message)
    if leaf_spki != endorsement_key.spki:
        message = "the certificate is that of another key than the endorsement key shown"
        raise EnrollmentRejected(EnrollmentReason.EK_CERTIFICATE_OF_OTHER_KEY, message)
    return anchor


def _read_certificate(certificate: bytes) -> tuple[x509.Certificate, bytes, str]:
    """Certificate, its SubjectPublicKeyInfo encoded anew, and the TPM model that it names."""
    if not certificate:
        message = "the TPM has no endorsement key certificate"
        raise EnrollmentRejected(EnrollmentReason.EK_CERTIFICATE_MISSING, message)
    try:
        if len(certificate) > MAX_CERTIFICATE_BYTES:
            raise ValueError(f"{len(certificate)} bytes; at most {MAX_CERTIFICATE_BYTES} are read")
        leaf = x509.load_der_x509_certificate(certificate)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        spki = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        model = _tpm_model(names)
    except (*_UNREADABLE, x509.ExtensionNotFound) as exc:
        message = "the endorsement key's certificate cannot be read or does not name a TPM"
        raise EnrollmentRejected(EnrollmentReason.EK_CERTIFICATE_MALFORMED, message) from exc
    return leaf, spki, model


def _tpm_model(names: x509.SubjectAlternativeName) -> str:
    for name in names.get_values_for_type(x509.DirectoryName):
        values = {
            oid: [str(attribute.value) for attribute in name.get_attributes_for_oid(oid)]
            for oid in (_TPM_MANUFACTURER, _TPM_MODEL, _TPM_VERSION)
        }
        if all(len(found) == 1 for found in values.values()):
            return values[_TPM_MODEL][0]
    raise ValueError("expected a directory name with one TPM manufacturer, model and version")


def _readable(intermediates: Sequence[bytes]) -> list[x509.Certificate]:
    certificates = []
    for der in intermediates[:MAX_INTERMEDIATES]:
        with contextlib.suppress(*_UNREADABLE):
            certificates.append(x509.load_der_x509_certificate(der))
    return certificates


def _find_anchor(
    leaf: x509.Certificate,
    intermediates: list[x509.Certificate],
    anchors: Sequence[Anchor],
    now: datetime.datetime,
) -> Anchor | None:
    if not anchors:
        return None
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([anchor.certificate for anchor in anchors]))
        .time(now)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
        .build_client_verifier()
    )
    try:
        chain = verifier.verify(leaf, intermediates).chain
    except verification.VerificationError:
        return None
    return next((anchor for anchor in anchors if anchor.certificate == chain[-1]), None)


def _check_leaf_constraints(
    _policy: verification.Policy, _certificate: x509.Certificate, constraints: x509.BasicConstraints | None
) -> None:
    if constraints is not None and constraints.ca:
        raise ValueError("an endorsement key certificate must not be that of a CA")


def _check_leaf_extended_usage(
    _policy: verification.Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None
) -> None:
    if usage is not None and _EK_USAGE not in usage:
        raise ValueError("the extended key usage is not that of an endorsement key")


def _check_leaf_usage(_policy: verification.Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    is_rsa = isinstance(certificate.public_key(), rsa.RSAPublicKey)
    if usage is None or usage.key_cert_sign or not (usage.key_encipherment if is_rsa else usage.key_agreement):
        raise ValueError("the key usage is not that of an endorsement key")


def _check_leaf_names(
    _policy: verification.Policy, _certificate: x509.Certificate, names: x509.SubjectAlternativeName | None
) -> None:
    if names is None:
        raise ValueError("an endorsement key certificate names its TPM")
    _tpm_model(names)


def _check_ca_usage(_policy: verification.Policy, _certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("a CA's key usage must allow signing certificates")


_LEAF_POLICY = (
    ExtensionPolicy.permit_all()
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _check_leaf_constraints)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _check_leaf_extended_usage)
    .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_leaf_usage)
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, _check_leaf_names)
    .may_be_present(x509.CertificatePolicies, Criticality.AGNOSTIC, None)
)
_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _check_ca_usage)
    .may_be_present(x509.CertificatePolicies, Criticality.AGNOSTIC, None)
)
