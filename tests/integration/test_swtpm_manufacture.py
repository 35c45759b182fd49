"""Manufacture of software TPMs: what is in them, and that nothing half-made is ever left."""

import subprocess
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPM2B_SENSITIVE_CREATE

from attestation.attester.endorsement import PROFILES
from attestation.attester.tpm import Tpm
from attestation.errors import TpmError
from attestation.model import EkTemplate, PcrBank
from swtpm.errors import StateError, StateReason
from swtpm.manufacture import EndorsementPublic, manufacture
from swtpm.process import SoftwareTpm
from swtpm.state import STATE_FILE, verify_state
from tests.software_tpm import EkCa, HostTpm

KEY = bytes(range(32))


def test_state_is_encrypted_from_the_first_byte(tpm_dir: Path, ek_ca: EkCa) -> None:
    """The state verifies with the key, and holds neither certificates nor NV markers in clear (R-OP-4)."""
    made = manufacture(tpm_dir / "encrypted", key=KEY, certify=ek_ca.certify)
    content = (tpm_dir / "encrypted" / STATE_FILE).read_bytes()
    verify_state(content, KEY)
    assert all(certificate[20:60] not in content for certificate in made.certificates)
    clear = manufacture(tpm_dir / "clear", key=None, certify=ek_ca.certify)
    content = (tpm_dir / "clear" / STATE_FILE).read_bytes()
    assert all(certificate[20:60] in content for certificate in clear.certificates)


def test_endorsement_keys_are_unique(tpm_dir: Path) -> None:
    """No two TPMs share an endorsement key."""
    keys = [manufacture(tpm_dir / str(i), key=KEY).endorsement_keys for i in range(3)]
    assert len({endorsement.public for pair in keys for endorsement in pair}) == 6


def test_persistent_keys_are_what_the_templates_make(software_tpm: HostTpm) -> None:
    """The keys at 0x81010001 and 0x81010016 are those that TPM2_CreatePrimary makes from the profile's templates."""
    with ESAPI(software_tpm.tcti) as esapi:
        _, capability = esapi.get_capability(TPM2_CAP.HANDLES, 0x81000000, 16)
        handles = capability.data.handles
        assert [handles[i] for i in range(handles.count)] == [0x81010001, 0x81010016]
    for endorsement in software_tpm.manufactured.endorsement_keys:
        with Tpm.open(software_tpm.tcti, template=endorsement.template) as tpm:
            assert tpm.endorsement_key().public == endorsement.public
        with ESAPI(software_tpm.tcti) as esapi:
            profile = PROFILES[endorsement.template]
            handle, public, _, _, _ = esapi.create_primary(
                TPM2B_SENSITIVE_CREATE(), profile.public_template(), ESYS_TR.ENDORSEMENT
            )
            area = public.publicArea
            assert area.marshal() == endorsement.public
            esapi.flush_context(handle)


def test_tools_of_others_agree(software_tpm: HostTpm, tpm_dir: Path) -> None:
    """Others' tools (tpm2-tools) make the same RSA key by its own template, and read the same certificates."""
    made = software_tpm.manufactured
    subprocess.run(
        ["tpm2_createek", "-T", software_tpm.tcti, "-G", "rsa", "-c", tpm_dir / "ek", "-u", tpm_dir / "ek.tss"],
        check=True,
        capture_output=True,
    )
    # TPM2B_PUBLIC: the public area after a 2-byte size.
    assert (tpm_dir / "ek.tss").read_bytes()[2:] == made.endorsement_keys[0].public
    for index, certificate in zip(("0x01c00002", "0x01c00016"), made.certificates, strict=True):
        read = subprocess.run(
            ["tpm2_nvread", "-T", software_tpm.tcti, index, "-C", index], check=True, capture_output=True
        )
        assert read.stdout == certificate


def test_equals_what_swtpm_setup_makes(software_tpm: HostTpm, tpm_dir: Path) -> None:
    """Handles and public areas of the endorsement keys are those of swtpm_setup."""
    other = tpm_dir / "setup"
    other.mkdir()
    subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpmstate", other, "--createek", "--pcr-banks", "sha256"],
        check=True,
        capture_output=True,
    )
    with SoftwareTpm.start(other, other / "tpm") as theirs:
        areas = [public_areas(theirs.tcti), public_areas(software_tpm.tcti)]
    assert areas[0] == areas[1]


def public_areas(tcti: str) -> list[tuple[int, bytes]]:
    """List the persistent keys of a TPM: handle and public area up to ``unique``."""
    areas = []
    with ESAPI(tcti) as esapi:
        for handle, unique in ((0x81010001, 2 + 256), (0x81010016, 2 * (2 + 48))):
            key = esapi.tr_from_tpmpublic(handle)
            public, _, _ = esapi.read_public(key)
            area = public.publicArea
            areas.append((handle, bytes(area.marshal())[:-unique]))
    return areas


@pytest.mark.parametrize("banks", [("sha256",), ("sha384",), ("sha256", "sha384")])
def test_only_the_banks_asked_for(tpm_dir: Path, banks: tuple[str, ...]) -> None:
    """The TPM has the PCR banks asked for and no others."""
    manufacture(tpm_dir / "state", key=KEY, banks=banks)
    with (
        SoftwareTpm.start(tpm_dir / "state", tpm_dir / "tpm", key=KEY) as process,
        Tpm.open(process.tcti) as tpm,
    ):
        for bank in PcrBank:
            if bank.value in banks:
                assert tpm.read_pcrs(bank, (0,)) == ((0, bytes(bank.digest_size)),)
            else:
                with pytest.raises(TpmError, match="not allocated"):
                    tpm.read_pcrs(bank, (0,))


@pytest.mark.parametrize("banks", [(), ("sha256", "md5")])
def test_unknown_banks_are_refused(tpm_dir: Path, banks: tuple[str, ...]) -> None:
    """A bank that does not exist, or none, is refused before anything is made."""
    with pytest.raises(ValueError, match="banks"):
        manufacture(tpm_dir / "state", key=KEY, banks=banks)
    assert list(tpm_dir.iterdir()) == []


def test_never_over_another_tpm(tpm_dir: Path) -> None:
    """A directory that holds a TPM is refused, and the TPM stays as it was (R-OP-4)."""
    manufacture(tpm_dir, key=KEY)
    before = (tpm_dir / STATE_FILE).read_bytes()
    with pytest.raises(StateError) as refused:
        manufacture(tpm_dir, key=KEY)
    assert refused.value.reason is StateReason.ALREADY_EXISTS
    assert (tpm_dir / STATE_FILE).read_bytes() == before


def test_two_at_once_make_one(tpm_dir: Path) -> None:
    """Of two that make a TPM in the same place, the slower is refused and changes nothing."""

    def certify_late(endorsement: EndorsementPublic) -> bytes:
        if not (tpm_dir / STATE_FILE).exists():
            manufacture(tpm_dir, key=KEY)
        return b"certificate"

    with pytest.raises(StateError) as refused:
        manufacture(tpm_dir, key=bytes(32), certify=certify_late)
    assert refused.value.reason is StateReason.ALREADY_EXISTS
    verify_state((tpm_dir / STATE_FILE).read_bytes(), KEY)
    assert [path.name for path in tpm_dir.iterdir()] == [STATE_FILE]


def test_refusing_authority_leaves_nothing(tpm_dir: Path) -> None:
    """When the authority refuses a certificate, its error passes and no TPM is left."""

    def refuse(endorsement: EndorsementPublic) -> bytes:
        raise PermissionError("not for this host")

    with pytest.raises(PermissionError, match="not for this host"):
        manufacture(tpm_dir, key=KEY, certify=refuse)
    assert list(tpm_dir.iterdir()) == []


@pytest.mark.parametrize("template", [EkTemplate.ECC_P256_LOW, EkTemplate.ECC_P256_HIGH])
def test_other_templates_can_be_chosen(tpm_dir: Path, ek_ca: EkCa, template: EkTemplate) -> None:
    """A TPM can have other endorsement keys, and the attester finds them by their certificate."""
    made = manufacture(tpm_dir / "state", key=KEY, certify=ek_ca.certify, templates=(template,))
    with (
        SoftwareTpm.start(tpm_dir / "state", tpm_dir / "tpm", key=KEY) as process,
        Tpm.open(process.tcti) as tpm,
    ):
        endorsement = tpm.endorsement_key()
    assert (endorsement.template, endorsement.certificate) == (template, made.certificates[0])
