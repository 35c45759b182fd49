"""The attester on a real software TPM: keys, activation, quotes, and what a TPM does when it is reset or dies."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_ECC,
    TPM2_SE,
    TPM2B_DIGEST,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMS_ATTEST,
    TPMS_NV_PUBLIC,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMT_SYM_DEF,
)
from tpm2_pytss.utils import make_credential

from attestation.attester.endorsement import PROFILES
from attestation.attester.evidence import collect_evidence
from attestation.attester.tpm import Quote, Tpm
from attestation.binding import QuoteBinding
from attestation.errors import TpmError
from attestation.model import EkTemplate, HostId, LogKind, PcrBank
from swtpm.process import SoftwareTpm
from tests.software_tpm import EkCa, HostTpm, MakeSoftwareTpm

AK_HANDLE = 0x81010020
ALL_PCRS = tuple(range(24))
EXTRA = bytes(range(32))
SECRET = bytes(range(32, 64))


@pytest.fixture
def tpm(software_tpm: HostTpm) -> Iterator[Tpm]:
    """Open the TPM as a host agent does."""
    with Tpm.open(software_tpm.tcti) as opened:
        yield opened


def credential_for(ek_public: bytes, ak_public: bytes) -> tuple[bytes, bytes]:
    """Make a credential as a verifier does, with tpm2-pytss's software implementation."""
    ek, _ = TPMT_PUBLIC.unmarshal(ek_public)
    ak, _ = TPMT_PUBLIC.unmarshal(ak_public)
    blob, secret = make_credential(TPM2B_PUBLIC(publicArea=ek), TPM2B_DIGEST(SECRET), ak.get_name())
    return bytes(blob.credential), bytes(secret.secret)


def loaded_handles(tcti: str) -> list[int]:
    """List transient objects and loaded sessions."""
    handles: list[int] = []
    with ESAPI(tcti) as esapi:
        for first in (0x80000000, 0x02000000):
            _, capability = esapi.get_capability(TPM2_CAP.HANDLES, first, 64)
            listed = capability.data.handles
            handles += [int(listed[i]) for i in range(listed.count)]
    return handles


def check_quote(quote: Quote, ak_public: bytes, pcrs: tuple[int, ...]) -> TPMS_ATTEST:
    """Check signature, extraData, selection and digest of a quote, apart from the product's verifier."""
    area, _ = TPMT_PUBLIC.unmarshal(ak_public)
    key = load_der_public_key(TPM2B_PUBLIC(publicArea=area).to_der())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    signature, rest = TPMT_SIGNATURE.unmarshal(quote.signature)
    assert rest == len(quote.signature)
    union = signature.signature
    ecdsa = union.ecdsa
    r, s = (int.from_bytes(bytes(value), "big") for value in (ecdsa.signatureR, ecdsa.signatureS))
    key.verify(utils.encode_dss_signature(r, s), quote.attest, ec.ECDSA(hashes.SHA256()))
    attest, size = TPMS_ATTEST.unmarshal(quote.attest)
    assert size == len(quote.attest)
    assert bytes(attest.extraData) == EXTRA
    assert tuple(index for index, _ in quote.pcr_values) == pcrs
    attested = attest.attested
    quoted = attested.quote
    digest = hashlib.sha256(b"".join(value for _, value in quote.pcr_values)).digest()
    assert bytes(quoted.pcrDigest) == digest
    return attest


def test_endorsement_key_prefers_p384(software_tpm: HostTpm, tpm: Tpm) -> None:
    """Of the certificates in the TPM, the P-384 one is taken, with its very key (R-TA-5)."""
    made = software_tpm.manufactured
    endorsement = tpm.endorsement_key()
    assert endorsement.template is EkTemplate.ECC_P384_HIGH
    assert endorsement.public == made.endorsement_keys[1].public
    assert endorsement.certificate == made.certificates[1]
    assert endorsement.intermediates == ()


@pytest.mark.parametrize("template", list(EkTemplate))
def test_each_template_gives_a_key_of_its_kind(software_tpm: HostTpm, template: EkTemplate) -> None:
    """Any template can be forced; without a certificate for it, none is claimed."""
    with Tpm.open(software_tpm.tcti, template=template) as tpm:
        endorsement = tpm.endorsement_key()
    assert endorsement.template is template
    has_certificate = template in (EkTemplate.RSA_2048_LOW, EkTemplate.ECC_P384_HIGH)
    assert (endorsement.certificate is not None) is has_certificate
    area, rest = TPMT_PUBLIC.unmarshal(endorsement.public)
    assert rest == len(endorsement.public)
    assert area.type == (TPM2_ALG.RSA if "rsa" in template.value else TPM2_ALG.ECC)


def test_tpm_without_certificates_falls_back(tpm_dir: Path) -> None:
    """A TPM with no endorsement certificate at all still has an RSA-2048 key to be pinned by."""
    with SoftwareTpm.start(tpm_dir, tpm_dir / "tpm", new=True) as process, Tpm.open(process.tcti) as tpm:
        endorsement = tpm.endorsement_key()
    assert (endorsement.template, endorsement.certificate) == (EkTemplate.RSA_2048_LOW, None)


def test_attestation_key_is_restricted_and_always_the_same(software_tpm: HostTpm, tpm: Tpm) -> None:
    """The attestation key is a restricted ECDSA P-256 key, the same after a reset (R-TA-5)."""
    public = tpm.attestation_key()
    area, _ = TPMT_PUBLIC.unmarshal(public)
    # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign; not decrypt.
    assert int(area.objectAttributes) == 0x00050472
    software_tpm.reset()
    assert tpm.attestation_key() == public


def test_persistent_attestation_key_is_made_once(software_tpm: HostTpm, tpm: Tpm) -> None:
    """A key kept at a handle is the one made anew for each use, and is found there after a reset."""
    with Tpm.open(software_tpm.tcti, ak_handle=AK_HANDLE) as keeper:
        assert keeper.attestation_key() == tpm.attestation_key()
        software_tpm.reset()
        check_quote(keeper.quote(EXTRA, PcrBank.SHA256, (0,)), tpm.attestation_key(), (0,))
    assert loaded_handles(software_tpm.tcti) == []


def test_foreign_key_at_the_handle_is_refused(software_tpm: HostTpm) -> None:
    """A persistent key of another kind or hierarchy is not taken for the attestation key."""
    with Tpm.open(software_tpm.tcti, ak_handle=0x81010001) as tpm, pytest.raises(TpmError, match="0x81010001"):
        tpm.attestation_key()
    with Tpm.open(software_tpm.tcti) as tpm:
        area, _ = TPMT_PUBLIC.unmarshal(tpm.attestation_key())
    area.unique.ecc.x, area.unique.ecc.y = b"", b""
    with ESAPI(software_tpm.tcti) as esapi:
        template = TPM2B_PUBLIC(publicArea=area)
        handle, _, _, _, _ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        esapi.evict_control(ESYS_TR.OWNER, handle, AK_HANDLE)
        esapi.flush_context(handle)
    with Tpm.open(software_tpm.tcti, ak_handle=AK_HANDLE) as tpm, pytest.raises(TpmError, match="not an attestation"):
        tpm.attestation_key()


@pytest.mark.parametrize("template", list(EkTemplate))
def test_activates_a_credential_for_its_keys(software_tpm: HostTpm, template: EkTemplate) -> None:
    """A credential made for this TPM's keys opens, whether the key takes a policy or a password (R-TA-5)."""
    with Tpm.open(software_tpm.tcti, template=template) as tpm:
        credential = credential_for(tpm.endorsement_key().public, tpm.attestation_key())
        assert tpm.activate_credential(*credential) == SECRET
    assert loaded_handles(software_tpm.tcti) == []


def test_credential_of_another_tpm_stays_closed(make_software_tpm: MakeSoftwareTpm) -> None:
    """A credential for another TPM's endorsement key, or for another attestation key, does not open."""
    with Tpm.open(make_software_tpm().tcti) as mine, Tpm.open(make_software_tpm().tcti) as other:
        ek, ak = mine.endorsement_key().public, mine.attestation_key()
        for credential in (
            credential_for(other.endorsement_key().public, ak),
            credential_for(ek, other.attestation_key()),
        ):
            with pytest.raises(TpmError, match="credential activation"):
                mine.activate_credential(*credential)
        assert mine.activate_credential(*credential_for(ek, ak)) == SECRET


@pytest.mark.parametrize("case", ["empty", "short", "bit", "oversized"])
def test_damaged_credential_is_refused(software_tpm: HostTpm, tpm: Tpm, case: str) -> None:
    """A damaged credential is a TpmError, leaves nothing loaded, and the TPM usable."""
    blob, secret = credential_for(tpm.endorsement_key().public, tpm.attestation_key())
    damaged = {
        "empty": (b"", b""),
        "short": (blob[:-1], secret),
        "bit": (blob[:-1] + bytes([blob[-1] ^ 1]), secret),
        "oversized": (blob * 50, secret * 50),
    }[case]
    with pytest.raises(TpmError, match="credential activation"):
        tpm.activate_credential(*damaged)
    assert loaded_handles(software_tpm.tcti) == []
    assert tpm.activate_credential(blob, secret) == SECRET


@pytest.mark.parametrize("pcrs", [(0,), (0, 2, 4, 7, 11), ALL_PCRS])
def test_quote_and_values_agree(tpm: Tpm, pcrs: tuple[int, ...]) -> None:
    """A quote is signed by the attestation key over the extra data and the values that come with it (R-TA-5)."""
    tpm.extend(4, {PcrBank.SHA256: b"\x11" * 32})
    attest = check_quote(tpm.quote(EXTRA, PcrBank.SHA256, pcrs), tpm.attestation_key(), pcrs)
    clock = attest.clockInfo
    # Only a key of the endorsement hierarchy tells the true counters.
    assert clock.resetCount == tpm.clock().boot.reset_count


def test_quote_while_pcrs_move(tpm: Tpm) -> None:
    """While another thread extends PCRs, quote and values still agree (R-TA-5)."""
    stop = threading.Event()

    def measure() -> None:
        for _ in range(40):
            if stop.wait(0.002):
                return
            tpm.extend(10, {PcrBank.SHA256: os.urandom(32)})

    with ThreadPoolExecutor(1) as other:
        measuring = other.submit(measure)
        key = tpm.attestation_key()
        for _ in range(10):
            check_quote(tpm.quote(EXTRA, PcrBank.SHA256, ALL_PCRS), key, ALL_PCRS)
        stop.set()
        measuring.result()


def test_extend_is_the_hash_chain(tpm: Tpm) -> None:
    """Extending a PCR gives H(old ‖ digest), and leaves the others alone."""
    first, second = b"\x01" * 32, b"\x02" * 32
    tpm.extend(7, {PcrBank.SHA256: first})
    tpm.extend(7, {PcrBank.SHA256: second})
    once = hashlib.sha256(bytes(32) + first).digest()
    expected = hashlib.sha256(once + second).digest()
    assert tpm.read_pcrs(PcrBank.SHA256, (7, 8)) == ((7, expected), (8, bytes(32)))


@pytest.mark.parametrize("pcrs", [(), (24,), (-1,), (0, 0)])
def test_impossible_pcrs_are_refused(tpm: Tpm, pcrs: tuple[int, ...]) -> None:
    """PCRs that no TPM has, none, or one twice, are refused before the TPM is asked."""
    with pytest.raises(ValueError, match="PCRs"):
        tpm.quote(EXTRA, PcrBank.SHA256, pcrs)
    with pytest.raises(ValueError, match="PCRs"):
        tpm.read_pcrs(PcrBank.SHA256, pcrs)


def test_wrong_digest_length_is_refused(tpm: Tpm) -> None:
    """A digest of another bank's length is not extended."""
    with pytest.raises(ValueError, match="length"):
        tpm.extend(0, {PcrBank.SHA256: bytes(48)})


def test_unallocated_bank_is_an_error(tpm: Tpm) -> None:
    """A quote over a bank that the TPM does not have is refused, not given over nothing (CVE-2022-0317)."""
    with pytest.raises(TpmError, match="sha384 bank is not allocated"):
        tpm.quote(EXTRA, PcrBank.SHA384, (0, 7))


def test_reset_counts_and_clears(software_tpm: HostTpm, tpm: Tpm) -> None:
    """A power cycle raises resetCount by one, restarts the time and zeroes PCRs."""
    tpm.extend(4, {PcrBank.SHA256: b"\x11" * 32})
    before = tpm.clock()
    software_tpm.reset()
    after = tpm.clock()
    assert after.boot.reset_count == before.boot.reset_count + 1
    assert after.boot.restart_count == 0
    assert after.safe
    assert after.clock_ms >= before.clock_ms
    assert tpm.read_pcrs(PcrBank.SHA256, (4,)) == ((4, bytes(32)),)


def test_kill_and_restart_counts(software_tpm: HostTpm, tpm: Tpm) -> None:
    """After a power cut the TPM is the same, resetCount grew, and its clock says that it is unsafe."""
    endorsement, before = tpm.endorsement_key(), tpm.clock()
    software_tpm.process.kill()
    with pytest.raises(TpmError):
        tpm.clock()
    socket_path = software_tpm.state_dir / "tpm"
    with SoftwareTpm.start(software_tpm.state_dir, socket_path, key=software_tpm.key):
        after = tpm.clock()
        assert after.boot.reset_count == before.boot.reset_count + 1
        assert not after.safe
        assert tpm.endorsement_key() == endorsement


def test_sweeps_what_others_left(software_tpm: HostTpm) -> None:
    """Objects and sessions that a dead process left loaded are flushed when the TPM is opened."""
    with ESAPI(software_tpm.tcti) as esapi:
        for _ in range(3):
            esapi.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc256")
            esapi.start_auth_session(
                ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
            )
    assert len(loaded_handles(software_tpm.tcti)) == 6
    with Tpm.open(software_tpm.tcti, template=EkTemplate.RSA_2048_LOW) as tpm:
        assert loaded_handles(software_tpm.tcti) == []
        assert tpm.activate_credential(*credential_for(tpm.endorsement_key().public, tpm.attestation_key())) == SECRET


def test_many_threads_share_one_tpm(tpm: Tpm) -> None:
    """Calls from many threads at once are served one after the other, each with its own answer."""
    key = tpm.attestation_key()
    with ThreadPoolExecutor(8) as threads:
        quotes = list(threads.map(lambda _: tpm.quote(EXTRA, PcrBank.SHA256, (0, 1)), range(24)))
    for quote in quotes:
        check_quote(quote, key, (0, 1))
    assert len({quote.signature for quote in quotes}) == 24


def test_hung_tpm_hangs_nobody(software_tpm: HostTpm) -> None:
    """A TPM that stops answering is an error after the time given; further calls fail at once."""
    tpm = Tpm.open(software_tpm.tcti, timeout_seconds=0.5)
    os.kill(software_tpm.process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TpmError, match=r"did not answer within 0\.5 s"):
            tpm.clock()
        with pytest.raises(TpmError, match="did not answer before"):
            tpm.clock()
    finally:
        os.kill(software_tpm.process.pid, signal.SIGCONT)
    tpm.close()


def test_absent_tpm_is_named(tpm_dir: Path) -> None:
    """A TPM that cannot be reached is named in the error."""
    with pytest.raises(TpmError, match=r"cannot reach a TPM at swtpm:path=.*nowhere"):
        Tpm.open(f"swtpm:path={tpm_dir / 'nowhere'}")


def test_closed_tpm_refuses(software_tpm: HostTpm) -> None:
    """A closed TPM refuses calls, and can be closed again."""
    tpm = Tpm.open(software_tpm.tcti)
    tpm.close()
    tpm.close()
    with pytest.raises(TpmError, match="closed"):
        tpm.clock()


def test_evidence_carries_the_binding(tpm: Tpm) -> None:
    """Evidence is a quote whose extraData is the binding's digest (R-TA-5)."""
    binding = QuoteBinding(
        nonce=bytes(32),
        tls_thumbprint=bytes(32),
        hpke_thumbprint=bytes(32),
        log_hashes={LogKind.TCG: bytes(32)},
        host_id=HostId("0" * 64),
        service_key=bytes(32),
        audience="garant",
    )
    attest, _ = TPMS_ATTEST.unmarshal(collect_evidence(tpm, binding, PcrBank.SHA256, (0, 7)).attest)
    assert bytes(attest.extraData) == binding.extra_data()


def define_nv(tcti: str, index: int, content: bytes | None) -> None:
    """Define an NV index as a platform does, and write it unless there is no content."""
    attributes = TPMA_NV.PPWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | TPMA_NV.PLATFORMCREATE
    area = TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=len(content or b"x"))
    with ESAPI(tcti) as esapi:
        handle = esapi.nv_define_space(b"", TPM2B_NV_PUBLIC(nvPublic=area), ESYS_TR.PLATFORM)
        if content is not None:
            esapi.nv_write(handle, content, 0, ESYS_TR.PLATFORM)


def test_issuing_chain_comes_with_the_key(software_tpm: HostTpm, ek_ca: EkCa) -> None:
    """Certificates of issuing authorities, end to end over several indices and padded, are handed over one by one."""
    issuer = ek_ca.certificate.public_bytes(Encoding.DER)
    define_nv(software_tpm.tcti, 0x01C00100, issuer + issuer[:100])
    define_nv(software_tpm.tcti, 0x01C00101, issuer[100:] + b"\xff" * 20)
    define_nv(software_tpm.tcti, 0x01C00102, None)
    with Tpm.open(software_tpm.tcti) as tpm:
        assert tpm.endorsement_key().intermediates == (issuer, issuer)


def test_nonce_of_the_tpm_is_in_the_key(software_tpm: HostTpm) -> None:
    """A low-range key whose nonce lies in NV is another than the template's alone, and still opens credentials."""
    with Tpm.open(software_tpm.tcti, template=EkTemplate.ECC_P256_LOW) as tpm:
        without = tpm.endorsement_key().public
    define_nv(software_tpm.tcti, 0x01C0000B, b"nonce of the TPM")
    with Tpm.open(software_tpm.tcti, template=EkTemplate.ECC_P256_LOW) as tpm:
        endorsement = tpm.endorsement_key()
        assert endorsement.public != without
        assert tpm.activate_credential(*credential_for(endorsement.public, tpm.attestation_key())) == SECRET


def test_template_of_the_tpm_replaces_the_default(software_tpm: HostTpm, tpm: Tpm) -> None:
    """A template that lies in NV is the one the key is made from."""
    template = PROFILES[EkTemplate.ECC_P256_LOW].public_template(b"in the template")
    area = template.publicArea
    define_nv(software_tpm.tcti, 0x01C00017, area.marshal())
    public, _ = TPMT_PUBLIC.unmarshal(tpm.endorsement_key().public)
    assert public.nameAlg == TPM2_ALG.SHA256
    parameters = public.parameters
    assert parameters.eccDetail.curveID == TPM2_ECC.NIST_P256
