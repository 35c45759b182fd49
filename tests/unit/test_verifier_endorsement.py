"""Endorsement keys: templates, certificate chains, software TPMs, and whose certificate it is."""

import datetime
from dataclasses import dataclass, field, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attestation.errors import EnrollmentReason, EnrollmentRejected, PolicyRejected
from attestation.model import EkTemplate
from attestation.verifier.endorsement import Anchor, read_anchor, read_endorsement_key, require_endorsed

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)
BEFORE, AFTER = NOW - datetime.timedelta(days=100), NOW + datetime.timedelta(days=100)
EK_USAGE = x509.ObjectIdentifier("2.23.133.8.1")
LOW_POLICY = "0020 837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa"
HIGH_POLICY_256 = "0020 ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0"
HIGH_POLICY_384 = (
    "0030 b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
AREAS = {
    EkTemplate.RSA_2048_LOW: f"0001 000b 000300b2 {LOW_POLICY} 0006 0080 0043 0010 0800 00000000",
    EkTemplate.ECC_P256_LOW: f"0023 000b 000300b2 {LOW_POLICY} 0006 0080 0043 0010 0003 0010",
    EkTemplate.RSA_2048_HIGH: f"0001 000b 000300f2 {HIGH_POLICY_256} 0006 0080 0043 0010 0800 00000000",
    EkTemplate.ECC_P256_HIGH: f"0023 000b 000300f2 {HIGH_POLICY_256} 0006 0080 0043 0010 0003 0010",
    EkTemplate.ECC_P384_HIGH: f"0023 000c 000300f2 {HIGH_POLICY_384} 0006 0100 0043 0010 0004 0010",
    EkTemplate.RSA_3072_HIGH: f"0001 000c 000300f2 {HIGH_POLICY_384} 0006 0100 0043 0010 0c00 00000000",
}
"""Public areas as annex B of the EK Credential Profile has them, up to ``unique``."""
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
EK = ec.generate_private_key(ec.SECP256R1())
RSA_EK = rsa.generate_private_key(65537, 2048)


def public_area(template: EkTemplate, key: PublicKey) -> bytes:
    """TPMT_PUBLIC of an endorsement key."""
    if isinstance(key, rsa.RSAPublicKey):
        size = key.key_size // 8
        unique = size.to_bytes(2, "big") + key.public_numbers().n.to_bytes(size, "big")
    else:
        size, numbers = key.key_size // 8, key.public_numbers()
        unique = b"".join(size.to_bytes(2, "big") + value.to_bytes(size, "big") for value in (numbers.x, numbers.y))
    return bytes.fromhex(AREAS[template]) + unique


def usage(**bits: bool) -> x509.KeyUsage:
    """KeyUsage with these bits."""
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


def tpm_name(model: str = "TPM 9000", *, without: str = "") -> x509.SubjectAlternativeName:
    """How a certificate names its TPM."""
    attributes = {"2.23.133.2.1": "id:4E544300", "2.23.133.2.2": model, "2.23.133.2.3": "id:0001"}
    attributes.pop(without, None)
    name = [x509.NameAttribute(x509.ObjectIdentifier(oid), value) for oid, value in attributes.items()]
    return x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(name))])


Extension = tuple[x509.ExtensionType, bool]
CA_EXTENSIONS: tuple[Extension, ...] = (
    (x509.BasicConstraints(ca=True, path_length=None), True),
    (usage(key_cert_sign=True), True),
)
EK_EXTENSIONS: tuple[Extension, ...] = (
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (usage(key_agreement=True), True),
    (x509.ExtendedKeyUsage([EK_USAGE]), False),
    (tpm_name(), True),
)
POLICIES = x509.CertificatePolicies([x509.PolicyInformation(x509.ObjectIdentifier("1.2.3.4"), None)])
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")


@dataclass(frozen=True)
class Authority:
    """A CA of a vendor."""

    name: str = "vendor root"
    issuer: "Authority | None" = None
    extensions: tuple[Extension, ...] = CA_EXTENSIONS
    not_after: datetime.datetime = AFTER
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def certificate(self) -> x509.Certificate:
        """Its certificate."""
        return (self.issuer or self).sign(self.name, self.key.public_key(), self.extensions, not_after=self.not_after)

    def sign(
        self,
        name: str,
        key: PublicKey,
        extensions: tuple[Extension, ...],
        *,
        not_before: datetime.datetime = BEFORE,
        not_after: datetime.datetime = AFTER,
    ) -> x509.Certificate:
        """Sign a certificate; an empty name gives an empty subject."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(1)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def anchor(self, *, allow_virtual: bool = False) -> Anchor:
        """It, as an anchor."""
        return Anchor(self.name, self.certificate, allow_virtual)

    def endorse(
        self,
        key: PublicKey = EK.public_key(),  # noqa: B008 - an immutable key
        extensions: tuple[Extension, ...] = EK_EXTENSIONS,
        **times: datetime.datetime,
    ) -> bytes:
        """An endorsement key certificate, DER."""
        return self.sign("", key, extensions, **times).public_bytes(Encoding.DER)


ROOT = Authority()


def with_extension(changed: x509.ExtensionType, *, critical: bool = True) -> tuple[Extension, ...]:
    """Extensions of an EK certificate, one of them another."""
    kept = tuple(entry for entry in EK_EXTENSIONS if type(entry[0]) is not type(changed))
    return (*kept, (changed, critical))


def without_extension(kind: type[x509.ExtensionType]) -> tuple[Extension, ...]:
    """Extensions of an EK certificate, one of them missing."""
    return tuple(entry for entry in EK_EXTENSIONS if not isinstance(entry[0], kind))


def check(
    certificate: bytes,
    *anchors: Anchor,
    intermediates: tuple[x509.Certificate, ...] = (),
    key: ec.EllipticCurvePublicKey | None = None,
) -> Anchor:
    """Check the endorsement of a P-256 key."""
    area = public_area(EkTemplate.ECC_P256_LOW, key or EK.public_key())
    return require_endorsed(
        read_endorsement_key(EkTemplate.ECC_P256_LOW, area),
        certificate=certificate,
        intermediates=[one.public_bytes(Encoding.DER) for one in intermediates],
        anchors=anchors,
        now=NOW,
    )


def refusal(
    certificate: bytes,
    *anchors: Anchor,
    intermediates: tuple[x509.Certificate, ...] = (),
    key: ec.EllipticCurvePublicKey | None = None,
) -> EnrollmentReason:
    """Why an endorsement is refused."""
    with pytest.raises(EnrollmentRejected) as caught:
        check(certificate, *anchors, intermediates=intermediates, key=key)
    return caught.value.reason


def template_refusal(template: EkTemplate, area: bytes) -> EnrollmentReason:
    """Why a public area is refused."""
    with pytest.raises(EnrollmentRejected) as caught:
        read_endorsement_key(template, area)
    return caught.value.reason


@pytest.mark.parametrize("template", EkTemplate)
def test_each_template_is_recognised(template: EkTemplate) -> None:
    """Public areas of all templates are read, and give the key that they hold."""
    keys: dict[str, PublicKey] = {
        "rsa-2048": RSA_EK.public_key(),
        "rsa-3072": rsa.generate_private_key(65537, 3072).public_key(),
        "ecc-p256": EK.public_key(),
        "ecc-p384": ec.generate_private_key(ec.SECP384R1()).public_key(),
    }
    key = keys[template.value.rpartition("-")[0]]
    assert read_endorsement_key(template, public_area(template, key)).key == key


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256_LOW, EkTemplate.RSA_2048_LOW])
def test_a_public_area_must_be_the_templates(template: EkTemplate) -> None:
    """One changed bit in attributes, policy, algorithms or sizes is enough."""
    key = EK.public_key() if template is EkTemplate.ECC_P256_LOW else RSA_EK.public_key()
    area = public_area(template, key)
    for position in range(len(bytes.fromhex(AREAS[template]))):
        changed = area[:position] + bytes([area[position] ^ 1]) + area[position + 1 :]
        assert template_refusal(template, changed) is EnrollmentReason.EK_TEMPLATE_MISMATCH


def test_a_template_is_not_taken_for_another() -> None:
    """The template that is named is the one that is compared with."""
    area = public_area(EkTemplate.ECC_P256_HIGH, EK.public_key())
    assert template_refusal(EkTemplate.ECC_P256_LOW, area) is EnrollmentReason.EK_TEMPLATE_MISMATCH


@pytest.mark.parametrize("change", [b"", b"\0", b"cut"])
def test_a_public_area_holds_one_whole_key(change: bytes) -> None:
    """No key, a cut key and trailing bytes are refused."""
    whole = public_area(EkTemplate.ECC_P256_LOW, EK.public_key())
    area = {b"": bytes.fromhex(AREAS[EkTemplate.ECC_P256_LOW]), b"\0": whole + b"\0", b"cut": whole[:-1]}[change]
    assert template_refusal(EkTemplate.ECC_P256_LOW, area) is EnrollmentReason.EK_TEMPLATE_MISMATCH


def test_a_certificate_of_the_anchor_is_accepted() -> None:
    """A chain of one step passes, with critical names and an empty subject."""
    assert check(ROOT.endorse(), ROOT.anchor()).name == "vendor root"


def test_an_rsa_key_is_accepted() -> None:
    """RSA endorsement keys encipher where others agree."""
    certificate = ROOT.endorse(RSA_EK.public_key(), with_extension(usage(key_encipherment=True)))
    key = read_endorsement_key(EkTemplate.RSA_2048_LOW, public_area(EkTemplate.RSA_2048_LOW, RSA_EK.public_key()))
    found = require_endorsed(key, certificate=certificate, intermediates=[], anchors=[ROOT.anchor()], now=NOW)
    assert found.name == "vendor root"


def test_an_intermediate_leads_to_the_anchor() -> None:
    """What the TPM carries helps to build the path; what is unreadable among it does no harm."""
    issuing = Authority("issuing CA", ROOT)
    key = read_endorsement_key(EkTemplate.ECC_P256_LOW, public_area(EkTemplate.ECC_P256_LOW, EK.public_key()))
    der = issuing.certificate.public_bytes(Encoding.DER)
    found = require_endorsed(
        key, certificate=issuing.endorse(), intermediates=[b"junk", der], anchors=[ROOT.anchor()], now=NOW
    )
    assert found.name == "vendor root"


def test_an_issuing_ca_may_be_the_anchor() -> None:
    """An administrator may pin the issuing CA itself."""
    issuing = Authority("issuing CA", ROOT)
    assert check(issuing.endorse(), issuing.anchor()).name == "issuing CA"


def test_critical_certificate_policies_are_tolerated() -> None:
    """Vendors mark them critical in leaves and CAs."""
    root = Authority(extensions=(*CA_EXTENSIONS, (POLICIES, True)))
    assert check(root.endorse(extensions=(*EK_EXTENSIONS, (POLICIES, True))), root.anchor())


def test_a_ca_may_lack_key_usage() -> None:
    """Without the extension nothing is restricted (RFC 5280, 4.2.1.3)."""
    root = Authority(extensions=CA_EXTENSIONS[:1])
    assert check(root.endorse(), root.anchor())


def test_a_leaf_may_lack_extended_usage_and_constraints() -> None:
    """The profile asks for neither."""
    kept = (EK_EXTENSIONS[1], EK_EXTENSIONS[3])
    assert check(ROOT.endorse(extensions=kept), ROOT.anchor())


def test_a_missing_certificate_is_told_apart() -> None:
    """A TPM without certificate gets a reason of its own."""
    assert refusal(b"", ROOT.anchor()) is EnrollmentReason.EK_CERTIFICATE_MISSING


@pytest.mark.parametrize(
    "certificate",
    [
        b"junk",
        ROOT.endorse() + b"\0",
        ROOT.endorse()[:-1],
        ROOT.endorse(extensions=(*EK_EXTENSIONS, (x509.UnrecognizedExtension(UNKNOWN.oid, bytes(9000)), False))),
        ROOT.endorse(extensions=without_extension(x509.SubjectAlternativeName)),
        ROOT.endorse(extensions=with_extension(tpm_name(without="2.23.133.2.1"))),
        ROOT.endorse(extensions=with_extension(tpm_name(without="2.23.133.2.2"))),
        ROOT.endorse(extensions=with_extension(tpm_name(without="2.23.133.2.3"))),
        ROOT.endorse(extensions=with_extension(x509.SubjectAlternativeName([x509.DNSName("tpm")]))),
    ],
    ids=[
        "junk",
        "trailing byte",
        "cut",
        "too long",
        "no name",
        "no manufacturer",
        "no model",
        "no version",
        "names no TPM",
    ],
)
def test_unreadable_certificates_are_refused(certificate: bytes) -> None:
    """What is not one certificate that names a TPM is malformed."""
    assert refusal(certificate, ROOT.anchor()) is EnrollmentReason.EK_CERTIFICATE_MALFORMED


@pytest.mark.parametrize(
    "certificate",
    [
        Authority().endorse(),
        ROOT.endorse(not_after=NOW - datetime.timedelta(seconds=1)),
        ROOT.endorse(not_before=NOW + datetime.timedelta(seconds=1)),
        ROOT.endorse(extensions=with_extension(x509.BasicConstraints(ca=True, path_length=None))),
        ROOT.endorse(extensions=with_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]))),
        ROOT.endorse(extensions=with_extension(usage(digital_signature=True))),
        ROOT.endorse(extensions=with_extension(usage(key_encipherment=True))),
        ROOT.endorse(extensions=with_extension(usage(key_agreement=True, key_cert_sign=True))),
        ROOT.endorse(extensions=without_extension(x509.KeyUsage)),
        ROOT.endorse(extensions=(*EK_EXTENSIONS, (UNKNOWN, True))),
    ],
    ids=[
        "signed by a namesake",
        "expired",
        "not yet valid",
        "a CA",
        "for TLS clients",
        "for signing",
        "enciphers with ECC",
        "signs certificates",
        "no usage",
        "unknown critical extension",
    ],
)
def test_wrong_leaves_are_refused(certificate: bytes) -> None:
    """No certificate but that of an endorsement key, valid and signed by the anchor, is believed."""
    assert refusal(certificate, ROOT.anchor()) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


@pytest.mark.parametrize(
    "issuing",
    [
        Authority("issuing CA", ROOT, not_after=NOW - datetime.timedelta(seconds=1)),
        Authority("issuing CA", ROOT, extensions=(CA_EXTENSIONS[0], (usage(crl_sign=True), True))),
        Authority("issuing CA", ROOT, extensions=EK_EXTENSIONS),
        Authority("issuing CA", ROOT, extensions=CA_EXTENSIONS[1:]),
        Authority("issuing CA", ROOT, extensions=(*CA_EXTENSIONS, (UNKNOWN, True))),
    ],
    ids=["expired", "may not sign", "a leaf", "no constraints", "unknown critical extension"],
)
def test_wrong_intermediates_are_refused(issuing: Authority) -> None:
    """Who is not a CA, or no longer, endorses nothing."""
    path = (issuing.certificate,)
    assert refusal(issuing.endorse(), ROOT.anchor(), intermediates=path) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


@pytest.mark.parametrize("path_length", [None, 2, 1, 0])
def test_path_lengths_hold(path_length: int | None) -> None:
    """A root that allows fewer than two CAs below it endorses nothing through two (RFC 5280, 4.2.1.9)."""
    root = Authority(extensions=((x509.BasicConstraints(True, path_length), True), CA_EXTENSIONS[1]))
    issuing = Authority("issuing CA", root)
    deeper = Authority("deeper CA", issuing)
    path = (deeper.certificate, issuing.certificate)
    if path_length in (0, 1):
        reason = refusal(deeper.endorse(), root.anchor(), intermediates=path)
        assert reason is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED
    else:
        assert check(deeper.endorse(), root.anchor(), intermediates=path).name == "vendor root"


def test_a_missing_intermediate_is_refused() -> None:
    """No path, no trust."""
    issuing = Authority("issuing CA", ROOT)
    assert refusal(issuing.endorse(), ROOT.anchor()) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


def test_an_expired_anchor_is_refused() -> None:
    """An anchor ends like any certificate."""
    root = Authority(not_after=NOW - datetime.timedelta(seconds=1))
    assert refusal(root.endorse(), root.anchor()) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


def test_without_anchors_nothing_is_trusted() -> None:
    """An empty site admits nobody."""
    assert refusal(ROOT.endorse()) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


def test_an_intermediate_of_the_host_is_no_anchor() -> None:
    """A self-made chain ends nowhere (T5)."""
    own = Authority("own root")
    assert refusal(own.endorse(), ROOT.anchor(), intermediates=(own.certificate,)) is (
        EnrollmentReason.EK_CERTIFICATE_UNTRUSTED
    )


@pytest.mark.parametrize("model", ["swtpm", "SWTPM"])
def test_a_software_tpm_needs_an_anchor_that_admits_it(model: str) -> None:
    """A software TPM under a vendor's anchor is refused with its own reason; under a flagged one it passes."""
    certificate = ROOT.endorse(extensions=with_extension(tpm_name(model)))
    assert refusal(certificate, ROOT.anchor()) is EnrollmentReason.VIRTUAL_TPM_NOT_ALLOWED
    assert check(certificate, ROOT.anchor(allow_virtual=True)).allow_virtual


def test_a_flag_of_another_anchor_does_not_admit_it() -> None:
    """The anchor that vouches must be the flagged one."""
    certificate = ROOT.endorse(extensions=with_extension(tpm_name("swtpm")))
    other = Authority("other root").anchor(allow_virtual=True)
    assert refusal(certificate, ROOT.anchor(), other) is EnrollmentReason.VIRTUAL_TPM_NOT_ALLOWED
    assert refusal(certificate, other) is EnrollmentReason.EK_CERTIFICATE_UNTRUSTED


def test_a_second_path_does_not_refuse_a_software_tpm() -> None:
    """Where the issuing CA and its root are anchors, the flagged one counts, in whatever order."""
    issuing = Authority("issuing CA", ROOT)
    certificate = issuing.endorse(extensions=with_extension(tpm_name("swtpm")))
    anchors = (issuing.anchor(), ROOT.anchor(allow_virtual=True))
    assert check(certificate, *anchors, intermediates=(issuing.certificate,)).name == "vendor root"


def test_a_certificate_of_another_key_is_refused() -> None:
    """A genuine certificate proves nothing for the key beside it (T6)."""
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    assert refusal(ROOT.endorse(), ROOT.anchor(), key=other) is EnrollmentReason.EK_CERTIFICATE_OF_OTHER_KEY


def test_the_host_id_is_that_of_the_key() -> None:
    """The id comes from the public area, so that two certificates of one key are one host."""
    area = public_area(EkTemplate.ECC_P256_LOW, EK.public_key())
    high = public_area(EkTemplate.ECC_P256_HIGH, EK.public_key())
    assert read_endorsement_key(EkTemplate.ECC_P256_LOW, area).host_id == (
        read_endorsement_key(EkTemplate.ECC_P256_HIGH, high).host_id
    )


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates as a file."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def test_a_ca_becomes_an_anchor() -> None:
    """A CA certificate is what an administrator adds."""
    certificate = ROOT.certificate
    anchor = read_anchor("vendor", pem(certificate), allow_virtual=False)
    assert (anchor.name, anchor.certificate, anchor.allow_virtual) == ("vendor", certificate, False)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        pem(ROOT.certificate, Authority("other").certificate),
        pem(x509.load_der_x509_certificate(ROOT.endorse())),
        pem(replace(ROOT, extensions=()).certificate),
        pem(replace(ROOT, extensions=(CA_EXTENSIONS[0], (usage(digital_signature=True), True))).certificate),
    ],
    ids=["empty", "junk", "two", "a leaf", "no constraints", "may not sign"],
)
def test_what_is_not_one_ca_is_no_anchor(content: bytes) -> None:
    """A leaf among the anchors would vouch for itself."""
    with pytest.raises(PolicyRejected):
        read_anchor("vendor", content, allow_virtual=False)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_damaged_certificates_raise_no_other_error() -> None:
    """Leaf or intermediate, with any byte changed: accepted or refused, nothing else (T15)."""
    issuing = Authority("issuing CA", ROOT)
    leaf, path = issuing.endorse(), issuing.certificate.public_bytes(Encoding.DER)
    anchors = [ROOT.anchor()]
    key = read_endorsement_key(EkTemplate.ECC_P256_LOW, public_area(EkTemplate.ECC_P256_LOW, EK.public_key()))
    refused = 0
    for original in (leaf, path):
        for position in range(len(original)):
            changed = original[:position] + bytes([original[position] ^ 0x06]) + original[position + 1 :]
            pair = (changed, path) if original is leaf else (leaf, changed)
            try:
                require_endorsed(key, certificate=pair[0], intermediates=[pair[1]], anchors=anchors, now=NOW)
            except EnrollmentRejected:
                refused += 1
    assert refused > 600
