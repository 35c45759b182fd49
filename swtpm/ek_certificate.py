"""Certificates of software TPMs' endorsement keys, and the authority that signs them.

Source: TCG EK Credential Profile for TPM Family 2.0, 3.2 (fields and extensions); the values are those that swtpm's
own ``swtpm_localca`` writes, so that whoever accepts its certificates accepts these.
Pure: keys, serial numbers and dates are passed in. Knows nothing of TPMs beyond the public key.
"""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

EK_CERTIFICATE_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate."""
TPM_MANUFACTURER = x509.ObjectIdentifier("2.23.133.2.1")
TPM_MODEL = x509.ObjectIdentifier("2.23.133.2.2")
TPM_VERSION = x509.ObjectIdentifier("2.23.133.2.3")
DEFAULT_MANUFACTURER = "id:00001014"
"""IBM, in the TCG vendor registry: the origin of libtpms."""
DEFAULT_VERSION = "id:20191023"

_SUBJECT_DIRECTORY_ATTRIBUTES = x509.ObjectIdentifier("2.5.29.9")
# SEQUENCE { Attribute { tpmSpecification 2.23.133.2.16, SET { SEQUENCE { family "2.0", level 0, revision 164 }}}}
_TPM_SPECIFICATION = bytes.fromhex("3019 3017 06056781050210 310e 300c 0c03322e30 020100 020200a4")

EkPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
IssuerKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def make_ek_ca(
    key: IssuerKey,
    *,
    name: str,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    issuer: tuple[IssuerKey, x509.Certificate] | None = None,
    path_length: int = 0,
) -> x509.Certificate:
    """Make the certificate of an authority for endorsement keys.

    Args:
        key: Key of the new authority.
        name: Its common name.
        serial: Positive, unique for its issuer, at most 159 bits.
        not_before: Start of its validity.
        not_after: End of its validity.
        issuer: Key and certificate of the authority above; None makes a self-signed root.
        path_length: How many authorities may stand below it.

    Raises:
        ValueError: The serial number or the dates make no certificate.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key, issuer_name = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, _hash_for(issuer_key))
    )


def issue_ek_certificate(
    issuer_key: IssuerKey,
    issuer_cert: x509.Certificate,
    public_key: EkPublicKey,
    *,
    serial: int,
    not_before: datetime,
    not_after: datetime,
    model: str = "swtpm",
    manufacturer: str = DEFAULT_MANUFACTURER,
    version: str = DEFAULT_VERSION,
) -> bytes:
    """Sign the certificate of an endorsement key.

    Args:
        issuer_key: Key of the authority.
        issuer_cert: Its certificate.
        public_key: RSA (gets keyEncipherment) or elliptic curve (gets keyAgreement).
        serial: Positive, unique for the issuer, at most 159 bits.
        not_before: Start of its validity.
        not_after: End of its validity.
        model: tpmModel.
        manufacturer: tpmManufacturer, ``id:`` and 8 hexadecimal digits.
        version: tpmVersion, ``id:`` and 8 hexadecimal digits.

    Returns:
        DER. The subject is empty; who the TPM is stands in the critical subjectAltName.

    Raises:
        ValueError: The serial number or the dates make no certificate.
    """
    is_rsa = isinstance(public_key, rsa.RSAPublicKey)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=is_rsa,
        data_encipherment=False,
        key_agreement=not is_rsa,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    identity = x509.Name(
        [
            x509.NameAttribute(TPM_MANUFACTURER, manufacturer),
            x509.NameAttribute(TPM_MODEL, model),
            x509.NameAttribute(TPM_VERSION, version),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer_cert.subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(identity)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([EK_CERTIFICATE_USAGE]), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .add_extension(x509.UnrecognizedExtension(_SUBJECT_DIRECTORY_ATTRIBUTES, _TPM_SPECIFICATION), critical=False)
        .sign(issuer_key, _hash_for(issuer_key))
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def _hash_for(key: IssuerKey) -> hashes.SHA256 | hashes.SHA384:
    """SHA-384 for P-384 and wider curves, else SHA-256: the hash matches the key's strength."""
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256:
        return hashes.SHA384()
    return hashes.SHA256()
