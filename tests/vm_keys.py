"""A key source for tests of the VM engine: it keeps its KEKs in memory, as a key provider's client would get them."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from host_agent.vm.keys import NewKey
from keyprovider.keymaterial import SecretKey


@dataclass
class MemoryKeys:
    """Implements ``host_agent.vm.keys.KeySource`` for any number of VMs."""

    provider: str = "memory"
    keks: dict[str, bytes] = field(default_factory=dict)
    """By key reference."""
    before_create: Callable[[str], object] = str
    """Called with each component that a key is to be made for."""
    before_unwrap: Callable[[str], object] = str
    """Called with each component whose key is to be unwrapped."""

    def create(self, component: str) -> NewKey:
        """Make a KEK."""
        self.before_create(component)
        reference = f"{component}#{len(self.keks)}"
        self.keks[reference] = os.urandom(32)
        return NewKey(reference, b"wrapped " + reference.encode(), SecretKey.adopt(self.keks[reference]))

    def unwrap(self, component: str, key_reference: str, wrapped_key: bytes) -> SecretKey:
        """Give a KEK back."""
        self.before_unwrap(component)
        assert wrapped_key == b"wrapped " + key_reference.encode()
        assert key_reference.startswith(component)
        return SecretKey.adopt(self.keks[key_reference])

    def all(self) -> Iterator[bytes]:
        """Every KEK that was made."""
        return iter(self.keks.values())
