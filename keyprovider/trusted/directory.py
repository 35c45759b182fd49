"""Providers and principals, read from the store at most once a second: every release needs them, they seldom change.

Another process over the same database may add some; so whoever does not find one asks for a fresh reading.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keyprovider.errors import InvalidArgument, StoreError
from keyprovider.trusted.model import Provider
from keyprovider.trusted.ports import ProviderStore

MAX_AGE_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store held at one moment."""

    providers: Mapping[str, Provider]
    """By name."""
    principal_keys: Mapping[str, ec.EllipticCurvePublicKey]
    """By key id."""
    principal_names: Mapping[str, str]
    """By key id."""


class Directory:
    """Reads the store now and then."""

    def __init__(self, store: ProviderStore, monotonic: Callable[[], float]) -> None:
        """Read ``store``; ``monotonic`` gives seconds that never go back."""
        self._store = store
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._read_at = 0.0

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """What the store holds, at most a second old; just read, if ``fresh``.

        Raises:
            StoreError: Unreachable, or a registered key is none.
        """
        with self._lock:
            if fresh or self._snapshot is None or self._monotonic() - self._read_at > MAX_AGE_SECONDS:
                read_at = self._monotonic()
                self._snapshot = self._read()
                self._read_at = read_at
            return self._snapshot

    def _read(self) -> Snapshot:
        principals = self._store.principals()
        try:
            keys = {each.key_id: load_principal_key(each.public_key) for each in principals}
        except InvalidArgument as exc:
            raise StoreError("a registered principal has no usable key") from exc
        return Snapshot(
            providers={each.name: each for each in self._store.providers()},
            principal_keys=keys,
            principal_names={each.key_id: each.name for each in principals},
        )


def load_principal_key(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """Read a principal's key.

    Raises:
        InvalidArgument: Not a SubjectPublicKeyInfo (DER) of a P-256 key.
    """
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InvalidArgument("a principal's key is a SubjectPublicKeyInfo in DER") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidArgument("a principal's key is on P-256")
    return key
