"""When to attest again: at 80 % of the token's life, and with growing pauses where that fails.

Pure: times and jitter are passed in.
"""

import datetime
from dataclasses import dataclass

RENEW_AFTER_SHARE = 0.8
"""Share of a token's life after which to attest again."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_MAX_DOUBLINGS = 10


@dataclass(frozen=True, slots=True)
class TokenLife:
    """When a token is to be renewed and when it ends, in seconds of the host's boot clock."""

    renew_at: float
    ends_at: float


def token_life(
    *, expires_at: datetime.datetime, renew_at: datetime.datetime, server_time: datetime.datetime, asked_at: float
) -> TokenLife:
    """Carry a token's times over to the host's own clock, whose wall time may be wrong.

    Args:
        expires_at: End of the token, by the service's clock.
        renew_at: When the service wants to hear from the host again; kept between 10 % and 80 % of the token's life.
        server_time: The service's clock when it answered.
        asked_at: The boot clock before the call: a slow answer shortens the life, never lengthens it.
    """
    life_seconds = (expires_at - server_time).total_seconds()
    wanted = (renew_at - server_time).total_seconds()
    renew_after = min(max(wanted, 0.1 * life_seconds), RENEW_AFTER_SHARE * life_seconds)
    return TokenLife(asked_at + renew_after, asked_at + life_seconds)


def pause_after_failures(failures: int, jitter: float) -> float:
    """Seconds to wait after the ``failures``-th failure in a row.

    Doubles from 0.5 to 10 seconds; half of it is taken by chance, so that a fleet does not come back all at once.

    Args:
        failures: At least 1.
        jitter: From 0 to 1, by chance.
    """
    longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * float(1 << min(failures - 1, _MAX_DOUBLINGS)))
    return longest * (1 + jitter) / 2
