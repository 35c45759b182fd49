"""Templates of endorsement keys and where a TPM keeps what belongs to them.

Source: TCG EK Credential Profile for TPM Family 2.0, 2.2.1.4 (low range), 2.2.1.5 (high range), annex B (templates).
A TPM may refine a template by a nonce (low range) or replace it by one of its own, both in NV.
"""

from dataclasses import dataclass

from tpm2_pytss import (
    TPM2_ALG,
    TPM2_ECC,
    TPM2B_PUBLIC,
    TPMA_OBJECT,
    TPMS_ECC_PARMS,
    TPMS_ECC_POINT,
    TPMS_RSA_PARMS,
    TPMT_ECC_SCHEME,
    TPMT_KDF_SCHEME,
    TPMT_PUBLIC,
    TPMT_RSA_SCHEME,
    TPMT_SYM_DEF_OBJECT,
    TPMU_PUBLIC_ID,
    TPMU_PUBLIC_PARMS,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from attestation.model import EkTemplate

ISSUING_CHAIN_FIRST = 0x01C00100
ISSUING_CHAIN_LAST = 0x01C001FF
"""NV indices of the issuing CAs' certificates, concatenated (EK Credential Profile, 2.2.1.5.2)."""

_LOW_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.ADMINWITHPOLICY
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.DECRYPT
)
_POLICY_A_SHA256 = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")
"""PolicySecret(endorsement hierarchy)."""
_POLICY_B_SHA256 = bytes.fromhex("ca3d0a99a2b93906f7a3342414efcfb3a385d44cd1fd459089d19b5071c0b7a0")
_POLICY_B_SHA384 = bytes.fromhex(
    "b26e7d28d11a50bc53d882bcf5fd3a1a074148bb35d3b4e4cb1c0ad9bde419cacb47ba09699646150f9fc000f3f80e12"
)
"""PolicyOR of policy A and PolicyAuthorizeNV."""


@dataclass(frozen=True, slots=True)
class EndorsementProfile:
    """What the profile fixes for one kind of endorsement key."""

    template: EkTemplate
    certificate_index: int
    """NV index of the certificate."""
    template_index: int
    """NV index of a template that replaces the default one."""
    nonce_index: int | None
    """NV index of a nonce for the template's ``unique`` field; low range only."""
    persistent_handle: int
    """Where swtpm_setup and most platforms keep the key."""
    high_range: bool
    """Whether the key also takes an (empty) password. A low-range key demands a policy session."""
    rsa_bits: int | None = None
    curve: int | None = None

    def public_template(self, nonce: bytes = b"") -> TPM2B_PUBLIC:
        """Build the template for TPM2_CreatePrimary, as annex B has it."""
        wide = self.curve == TPM2_ECC.NIST_P384 or self.rsa_bits == 3072
        symmetric = TPMT_SYM_DEF_OBJECT(
            algorithm=TPM2_ALG.AES,
            keyBits=TPMU_SYM_KEY_BITS(aes=256 if wide else 128),
            mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB),
        )
        if self.rsa_bits is not None:
            kind = TPM2_ALG.RSA
            parameters = TPMU_PUBLIC_PARMS(
                rsaDetail=TPMS_RSA_PARMS(
                    symmetric=symmetric, scheme=TPMT_RSA_SCHEME(scheme=TPM2_ALG.NULL), keyBits=self.rsa_bits
                )
            )
            unique = TPMU_PUBLIC_ID(rsa=b"" if self.high_range else nonce.ljust(self.rsa_bits // 8, b"\0"))
        else:
            kind = TPM2_ALG.ECC
            parameters = TPMU_PUBLIC_PARMS(
                eccDetail=TPMS_ECC_PARMS(
                    symmetric=symmetric,
                    scheme=TPMT_ECC_SCHEME(scheme=TPM2_ALG.NULL),
                    curveID=self.curve,
                    kdf=TPMT_KDF_SCHEME(scheme=TPM2_ALG.NULL),
                )
            )
            x, y = (b"", b"") if self.high_range else (nonce.ljust(32, b"\0"), bytes(32))
            unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=x, y=y))
        policy = _POLICY_A_SHA256
        if self.high_range:
            policy = _POLICY_B_SHA384 if wide else _POLICY_B_SHA256
        return TPM2B_PUBLIC(
            publicArea=TPMT_PUBLIC(
                type=kind,
                nameAlg=TPM2_ALG.SHA384 if wide else TPM2_ALG.SHA256,
                objectAttributes=_LOW_ATTRIBUTES | (TPMA_OBJECT.USERWITHAUTH if self.high_range else 0),
                authPolicy=policy,
                parameters=parameters,
                unique=unique,
            )
        )


def _low(template: EkTemplate, index: int, handle: int, **kind: int) -> EndorsementProfile:
    return EndorsementProfile(template, index, index + 2, index + 1, handle, high_range=False, **kind)


def _high(template: EkTemplate, index: int, handle: int, **kind: int) -> EndorsementProfile:
    return EndorsementProfile(template, index, index + 1, None, handle, high_range=True, **kind)


PROFILES = {
    profile.template: profile
    for profile in (
        _high(EkTemplate.ECC_P384_HIGH, 0x01C00016, 0x81010016, curve=TPM2_ECC.NIST_P384),
        _high(EkTemplate.ECC_P256_HIGH, 0x01C00014, 0x81010014, curve=TPM2_ECC.NIST_P256),
        _high(EkTemplate.RSA_3072_HIGH, 0x01C0001C, 0x8101001C, rsa_bits=3072),
        _high(EkTemplate.RSA_2048_HIGH, 0x01C00012, 0x81010012, rsa_bits=2048),
        _low(EkTemplate.ECC_P256_LOW, 0x01C0000A, 0x81010002, curve=TPM2_ECC.NIST_P256),
        _low(EkTemplate.RSA_2048_LOW, 0x01C00002, 0x81010001, rsa_bits=2048),
    )
}
"""Every template known here, in the order in which a TPM's certificates are looked for."""


def split_certificates(concatenated: bytes) -> tuple[bytes, ...]:
    """Split certificates (DER) that a TPM keeps end to end; padding after the last one is dropped."""
    certificates = []
    while length := _der_sequence_length(concatenated):
        certificates.append(concatenated[:length])
        concatenated = concatenated[length:]
    return tuple(certificates)


def _der_sequence_length(data: bytes) -> int:
    """Length of the DER SEQUENCE at the start, header included; 0 if there is no whole one."""
    if len(data) < 2 or data[0] != 0x30:
        return 0
    if data[1] < 0x80:
        total = 2 + data[1]
    else:
        size = data[1] & 0x7F
        if not 1 <= size <= 3 or len(data) < 2 + size:
            return 0
        total = 2 + size + int.from_bytes(data[2 : 2 + size], "big")
    return total if total <= len(data) else 0
