"""Endorsement certificates: what TCG's profile demands is in them, and chains verify."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtensionOID

from swtpm.ek_certificate import (
    EK_CERTIFICATE_USAGE,
    TPM_MANUFACTURER,
    TPM_MODEL,
    TPM_VERSION,
    EkPublicKey,
    issue_ek_certificate,
    make_ek_ca,
)

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
END = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
ROOT_KEY = ec.generate_private_key(ec.SECP384R1())
ROOT = make_ek_ca(ROOT_KEY, name="root", serial=1, not_before=START, not_after=END, path_length=1)
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
ISSUER = make_ek_ca(ISSUER_KEY, name="issuer", serial=2, not_before=START, not_after=END, issuer=(ROOT_KEY, ROOT))


def issue(key: EkPublicKey, model: str = "swtpm") -> x509.Certificate:
    """Issue a certificate for a key."""
    der = issue_ek_certificate(ISSUER_KEY, ISSUER, key, serial=7, not_before=START, not_after=END, model=model)
    return x509.load_der_x509_certificate(der)


@pytest.fixture(scope="module", params=["rsa", "p384"])
def ek(request: pytest.FixtureRequest) -> EkPublicKey:
    """Public endorsement key of each kind."""
    if request.param == "rsa":
        return rsa.generate_private_key(65537, 2048).public_key()
    return ec.generate_private_key(ec.SECP384R1()).public_key()


def test_identity_is_in_critical_alternative_name(ek: EkPublicKey) -> None:
    """The subject is empty; manufacturer, model and version stand in a critical directory name."""
    certificate = issue(ek, model="garant vTPM")
    assert certificate.subject == x509.Name([])
    name = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert name.critical
    (directory,) = name.value.get_values_for_type(x509.DirectoryName)
    assert [(attribute.oid, attribute.value) for attribute in directory] == [
        (TPM_MANUFACTURER, "id:00001014"),
        (TPM_MODEL, "garant vTPM"),
        (TPM_VERSION, "id:20191023"),
    ]


def test_key_may_only_do_what_its_kind_can(ek: EkPublicKey) -> None:
    """An RSA key enciphers keys, a curve key agrees on them; neither signs, neither is an authority."""
    extensions = issue(ek).extensions
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    is_rsa = isinstance(ek, rsa.RSAPublicKey)
    assert usage.critical
    assert (usage.value.key_encipherment, usage.value.key_agreement) == (is_rsa, not is_rsa)
    assert [usage.value.digital_signature, usage.value.key_cert_sign, usage.value.crl_sign] == [False] * 3
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [EK_CERTIFICATE_USAGE]


def test_names_the_tpm_specification(ek: EkPublicKey) -> None:
    """Subject directory attributes say TPM 2.0, level 0, revision 164, in DER that closes at its end."""
    oid = ExtensionOID.SUBJECT_DIRECTORY_ATTRIBUTES
    extension = issue(ek).extensions.get_extension_for_oid(oid)
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    value = extension.value.value
    assert value == bytes.fromhex("3019301706056781050210310e300c0c03322e30020100020200a4")
    assert value[1] == len(value) - 2


def test_chain_is_issued_link_by_link(ek: EkPublicKey) -> None:
    """Each certificate is directly issued by the one above, and by no other."""
    certificate = issue(ek)
    certificate.verify_directly_issued_by(ISSUER)
    ISSUER.verify_directly_issued_by(ROOT)
    ROOT.verify_directly_issued_by(ROOT)
    with pytest.raises(ValueError, match="issuer"):
        certificate.verify_directly_issued_by(ROOT)


def test_authorities_are_authorities() -> None:
    """An authority's certificate is critical about being one and how many may follow."""
    for certificate, path_length in ((ROOT, 1), (ISSUER, 0)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert constraints.critical
        assert (constraints.value.ca, constraints.value.path_length) == (True, path_length)
        assert certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign


def test_impossible_validity_is_refused(ek: EkPublicKey) -> None:
    """A certificate that ends before it starts is not made."""
    with pytest.raises(ValueError, match="before"):
        issue_ek_certificate(ISSUER_KEY, ISSUER, ek, serial=7, not_before=END, not_after=START)
