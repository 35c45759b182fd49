"""A whole attestation over gRPC, beside the TPM commands in it alone."""

import os

from attestation.binding import QuoteBinding
from attestation.model import PcrBank
from bench.figures import Figure, median_seconds
from bench.site import running_site

_TIMES = 60
_REACH_MS = 5.0


def measure() -> list[Figure]:
    """Attest again and again: challenge, quote, appraisal, token, certificate."""
    with running_site() as site:
        pcrs = (0, 2, 4, 7, 9, 11)
        random = os.urandom(32)
        binding = QuoteBinding(random, random, random, {}, site.session.current().host_id, random, "bench")
        for _ in range(5):
            site.session.renew(site.session.current())
            site.connecting_session.renew(site.connecting_session.current())
        connecting = median_seconds(
            lambda: site.connecting_session.renew(site.connecting_session.current()), times=_TIMES
        )
        floor = median_seconds(lambda: site.tpm.quote(binding, PcrBank.SHA256, pcrs), times=_TIMES) * 1000
        value = median_seconds(lambda: site.session.renew(site.session.current()), times=_TIMES) * 1000
    return [
        Figure(
            name="attest round trip over gRPC: challenge, quote, appraisal, token, certificate; median",
            value=value,
            unit="ms",
            floor="the TPM commands alone",
            floor_value=floor,
            reach=f"at most {_REACH_MS:.0f} ms beyond",
            reached=value - floor <= _REACH_MS,
        ),
        Figure(
            name="the same with a new TLS connection each time, as the host agent does",
            value=connecting * 1000,
            unit="ms",
            floor="the TPM commands alone",
            floor_value=floor,
            reach="reported",
            reached=None,
        ),
    ]
