"""Quotes verified and boots appraised in process, per second of CPU time."""

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import PcrBank
from attestation.simulator.software_host import Host, Measured, honest_events, make_log, software_key
from attestation.verifier.appraisal import Evidence, appraise
from attestation.verifier.policy import AppraisalPolicy
from attestation.verifier.quote import verify_quote
from attestation.verifier.reference import ReferenceBoot
from attestation.wire.event_types import EventType
from bench.figures import Figure, per_cpu_second

_QUOTE_REACH = 0.6
_BOOT_REACH = 1500.0
_EVENTS = 117
_BANKS = ("sha256", "sha384")
_EVENT_DATA = b"grub_cmd: set timeout=5; menuentry 'Debian GNU/Linux'; search --no-floppy --fs-uuid " * 4


def measure() -> list[Figure]:
    """Verify one honest quote again and again, and appraise a boot of the usual size."""
    return [_quotes(), _boots()]


def _quotes() -> Figure:
    host = Host()
    quote, values, key = host.quote(), host.pcr_values(), software_key()
    signature = key.sign(quote)
    public = key.public.to_public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(key.private, ec.EllipticCurvePrivateKey):
        raise TypeError("the attestation key is not on a curve")
    der = key.private.sign(quote, ec.ECDSA(hashes.SHA256()))

    def bare() -> None:
        public.verify(der, quote, ec.ECDSA(hashes.SHA256()))

    def verify() -> None:
        verify_quote(
            quote,
            signature,
            values,
            ak=key.public,
            expected_extra_data=host.fields.extra_data,
            bank=PcrBank.SHA256,
            pcrs=host.pcrs,
        )

    floor = rate = 0.0
    for _ in range(4):  # in turns: whatever else the machine does hits both
        floor = max(floor, per_cpu_second(bare, seconds=0.5, rounds=1))
        rate = max(rate, per_cpu_second(verify, seconds=0.5, rounds=1))
    return Figure(
        name="quote verified in process, ECC P-256",
        value=rate,
        unit="per CPU-second",
        floor="cryptography's ECDSA verify alone",
        floor_value=floor,
        reach=f"at least {_QUOTE_REACH} of the floor",
        reached=rate >= _QUOTE_REACH * floor,
    )


def _boots() -> Figure:
    events = honest_events()
    filler = [Measured(9, EventType.EV_IPL, _EVENT_DATA + bytes([n])) for n in range(_EVENTS - len(events))]
    host = Host(events=[*events, *filler], log_banks=_BANKS)
    evidence = host.evidence()
    policy = AppraisalPolicy(name="bench", version=1)
    log = make_log(host.events, _BANKS)
    reference = ReferenceBoot.from_log("bench", log, PcrBank.SHA256, policy.pcrs)

    def appraise_once() -> None:
        # A new value each time, so that nothing of the evidence is kept from one to the next.
        fresh = Evidence(evidence.quote, evidence.signature, evidence.pcr_values, evidence.logs)
        outcome = appraise(
            fresh,
            ak=host.key.public,
            expected_extra_data=host.fields.extra_data,
            policy=policy,
            references=[reference],
            previous_boot=None,
        )
        if not outcome.trusted:
            raise RuntimeError(f"the honest boot was refused: {outcome.reason}")

    rate = per_cpu_second(appraise_once, seconds=2.0, rounds=4)
    return Figure(
        name=f"quote and boot log ({len(host.events)} events, {len(log) // 1000} kB) appraised in process, with claims",
        value=rate,
        unit="per CPU-second",
        floor="",
        floor_value=None,
        reach=f"at least {_BOOT_REACH:,.0f}",
        reached=rate >= _BOOT_REACH,
    )
