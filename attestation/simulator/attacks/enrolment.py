"""Attacks on admission: hosts that want to be members, or somebody else."""

from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import EnrollmentReason as Reason
from attestation.simulator.attacks.attack import Attack, Stage
from attestation.simulator.lying_host import HonestHost
from attestation.simulator.software_host import AK_ATTRIBUTES, ecc_public
from garant.attestation.v1 import attestation_pb2 as pb

_RESTRICTED, _DECRYPT, _FIXED_TPM, _FIXED_PARENT, _ORIGIN = 1 << 16, 1 << 17, 1 << 1, 1 << 4, 1 << 5


def _claims(**fields: object) -> Callable[[HonestHost], HonestHost]:
    """Say other things of itself."""

    def edit(claim: pb.BeginEnrollmentRequest) -> None:
        for name, value in fields.items():
            setattr(claim, name, value)

    return lambda host: replace(host, edit_claim=edit)


def _key_with(attributes: int) -> Callable[[HonestHost], HonestHost]:
    """Show the attestation key with other attributes."""
    return lambda host: _claims(ak_public=ecc_public(_public(host), attributes=attributes))(host)


def _key_changed(offset: int, value: bytes) -> Callable[[HonestHost], HonestHost]:
    """Show the attestation key with other bytes in its public area."""

    def lie(host: HonestHost) -> HonestHost:
        area = host.tpm.attestation_key.public.encoded
        return _claims(ak_public=area[:offset] + value + area[offset + len(value) :])(host)

    return lie


def _public(host: HonestHost) -> ec.EllipticCurvePublicKey:
    key = host.tpm.attestation_key.private.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise TypeError("the simulator's attestation keys are on P-256")
    return key


def _neighbours_endorsement(host: HonestHost) -> HonestHost:
    other = host.surroundings.neighbour
    return _claims(ek_public=other.endorsement_public(), ek_certificate=other.certificate)(host)


def _certified_by_nobody(host: HonestHost) -> HonestHost:
    return _claims(ek_certificate=host.surroundings.certify_by_nobody(host.tpm.endorsement_key.public_key()))(host)


def _certified_as_hardware(host: HonestHost) -> HonestHost:
    return _claims(ek_certificate=host.surroundings.certify_as_hardware(host.tpm.endorsement_key.public_key()))(host)


def _enrolment(name: str, description: str, expected: Reason, lie: Callable[[HonestHost], HonestHost]) -> Attack:
    return Attack(name, description, expected, lie, Stage.ENROLLMENT)


ATTACKS = (
    _enrolment(
        "host-name-of-no-host",
        "a name that no host can have is written to logs and certificates",
        Reason.MALFORMED_REQUEST,
        _claims(host_name="../../etc/passwd\n"),
    ),
    _enrolment(
        "unknown-template",
        "an endorsement key of a kind that nobody knows is believed by default",
        Reason.MALFORMED_REQUEST,
        _claims(ek_template=pb.EK_TEMPLATE_UNSPECIFIED),
    ),
    _enrolment(
        "endorsement-key-of-another-template",
        "a key with attributes of its own choice passes for an endorsement key",
        Reason.EK_TEMPLATE_MISMATCH,
        _claims(ek_template=pb.EK_TEMPLATE_ECC_P256_HIGH),
    ),
    _enrolment(
        "endorsement-key-with-trailing-bytes",
        "bytes that nobody checked are signed, hashed or stored",
        Reason.EK_TEMPLATE_MISMATCH,
        lambda host: _claims(ek_public=host.tpm.endorsement_public() + b"\0")(host),
    ),
    _enrolment(
        "signing-key-as-endorsement-key",
        "the attestation key vouches for itself",
        Reason.EK_TEMPLATE_MISMATCH,
        lambda host: _claims(ek_public=host.tpm.attestation_key.public.encoded)(host),
    ),
    _enrolment(
        "no-certificate",
        "a key that nobody vouches for passes for that of a TPM (T5)",
        Reason.EK_CERTIFICATE_MISSING,
        _claims(ek_certificate=b""),
    ),
    _enrolment(
        "certificate-with-trailing-bytes",
        "bytes after a certificate are passed on unread",
        Reason.EK_CERTIFICATE_MALFORMED,
        lambda host: _claims(ek_certificate=host.tpm.certificate + bytes(16))(host),
    ),
    _enrolment(
        "certificate-by-nobody",
        "anyone can sign certificates for anyone (T5)",
        Reason.EK_CERTIFICATE_UNTRUSTED,
        _certified_by_nobody,
    ),
    _enrolment(
        "software-tpm-under-a-hardware-anchor",
        "a TPM whose root is the machine that runs it passes for hardware (T5)",
        Reason.VIRTUAL_TPM_NOT_ALLOWED,
        _certified_as_hardware,
    ),
    _enrolment(
        "certificate-of-another-endorsement-key",
        "a genuine certificate vouches for a key that it does not name (T6)",
        Reason.EK_CERTIFICATE_OF_OTHER_KEY,
        lambda host: _claims(ek_certificate=host.surroundings.neighbour.certificate)(host),
    ),
    _enrolment(
        "unrestricted-attestation-key",
        "a genuine TPM signs a forged quote",
        Reason.AK_ATTRIBUTES,
        _key_with(AK_ATTRIBUTES & ~_RESTRICTED),
    ),
    _enrolment(
        "attestation-key-that-decrypts",
        "a storage key is used as a signing key",
        Reason.AK_ATTRIBUTES,
        _key_with(AK_ATTRIBUTES | _DECRYPT),
    ),
    _enrolment(
        "attestation-key-that-may-leave-its-tpm",
        "the key is copied, and two machines are one host",
        Reason.AK_ATTRIBUTES,
        _key_with(AK_ATTRIBUTES & ~(_FIXED_TPM | _FIXED_PARENT)),
    ),
    _enrolment(
        "imported-attestation-key",
        "whoever made the key outside of the TPM still has it",
        Reason.AK_ATTRIBUTES,
        _key_with(AK_ATTRIBUTES & ~_ORIGIN),
    ),
    _enrolment(
        "attestation-key-named-by-sha1",
        "two keys have one name",
        Reason.AK_ALGORITHM,
        _key_changed(2, b"\x00\x04"),
    ),
    _enrolment(
        "attestation-key-without-a-scheme",
        "the signature chooses how it is checked",
        Reason.AK_ALGORITHM,
        lambda host: _claims(
            ak_public=host.tpm.attestation_key.public.encoded[:12]
            + b"\x00\x10"
            + host.tpm.attestation_key.public.encoded[16:]
        )(host),
    ),
    _enrolment(
        "attestation-key-off-its-curve",
        "a point that is not on the curve gives the secret away",
        Reason.MALFORMED_REQUEST,
        lambda host: _key_changed(len(host.tpm.attestation_key.public.encoded) - 1, b"\xff")(host),
    ),
    _enrolment(
        "attestation-key-of-another-tpm",
        "somebody else's good TPM answers for this host (T6)",
        Reason.BAD_PROOF,
        lambda host: _claims(ak_public=host.surroundings.neighbour.attestation_key.public.encoded)(host),
    ),
    _enrolment(
        "endorsement-key-of-another-tpm",
        "any TPM takes over the identity of another host (T6)",
        Reason.BAD_PROOF,
        _neighbours_endorsement,
    ),
    _enrolment(
        "guessed-proof",
        "a host that could not open the credential is believed",
        Reason.BAD_PROOF,
        lambda host: replace(host, opens_credential=False),
    ),
    _enrolment(
        "cut-off-proof",
        "a proof is compared only as far as it goes",
        Reason.BAD_PROOF,
        lambda host: replace(host, edit_proof=lambda proof: proof[:16]),
    ),
    _enrolment(
        "empty-proof",
        "no proof is as good as any",
        Reason.BAD_PROOF,
        lambda host: replace(host, edit_proof=lambda _: b""),
    ),
    _enrolment(
        "invented-join-token",
        "anyone can invite themselves",
        Reason.JOIN_TOKEN_INVALID,
        _claims(join_token="e30.e30.e30"),  # noqa: S106 - of no use
    ),
    _enrolment(
        "join-token-for-another-host",
        "an invitation for one host admits any",
        Reason.JOIN_TOKEN_FOR_OTHER_HOST,
        lambda host: replace(host, join_token=host.surroundings.join_token_for_another),
    ),
    _enrolment(
        "spent-join-token",
        "an invitation that was used admits a second host (T8)",
        Reason.JOIN_TOKEN_SPENT,
        lambda host: replace(
            host, name=host.surroundings.neighbour_name, join_token=host.surroundings.spent_join_token
        ),
    ),
    _enrolment(
        "name-of-another-host",
        "any TPM takes over the name of a member (CVE-2025-13609)",
        Reason.IDENTITY_CONFLICT,
        lambda host: replace(host, name=host.surroundings.neighbour_name, join_token=""),
    ),
    _enrolment(
        "return-of-a-banned-host",
        "a ban is undone by enrolling again (T9)",
        Reason.HOST_BANNED,
        lambda host: replace(
            host, tpm=host.surroundings.banned, name=host.surroundings.banned_name, join_token=""
        ).with_key(host.surroundings.banned.attestation_key),
    ),
    _enrolment(
        "genuine-tpm-that-waits",
        "a genuine TPM with the right boot is a member because of that",
        Reason.HOST_NOT_APPROVED,
        lambda host: replace(host, join_token=""),
    ),
    _enrolment(
        "genuine-tpm-that-never-enrolled",
        "a genuine TPM with the right boot is a member because of that",
        Reason.HOST_UNKNOWN,
        lambda host: replace(host, enrolls=False),
    ),
    _enrolment(
        "banned-host-attests",
        "a stolen host goes on as before (T9)",
        Reason.HOST_BANNED,
        lambda host: replace(host, tpm=host.surroundings.banned, enrolls=False).with_key(
            host.surroundings.banned.attestation_key
        ),
    ),
)
"""Attacks on enrolment."""
