"""Operations on keys: what each asks and how its answer is read (KMIP 1.4, section 4; 2.1, section 6).

Each operation is a value; :class:`Request` is what the client needs to know of it. A key comes out of :class:`Get`
straight from the message into secret pages, and goes into :class:`Register` straight from there.

Pure. :class:`KmipMalformed` and :class:`KmipKeyUnusable` are the only errors of reading an answer.
"""

from dataclasses import dataclass
from typing import ClassVar, Final, Protocol, TypeVar

from keyprovider.errors import KmipKeyReason, KmipKeyUnusable, KmipMalformed
from keyprovider.keymaterial import SecretKey
from keyprovider.kmip.attributes import Attribute, write_attribute, write_template
from keyprovider.kmip.fields import (
    Items,
    byte_string,
    enumeration,
    find_bytes,
    find_enumeration,
    find_integer,
    find_structure,
    find_text,
    integer,
    name_of,
    required,
    structure,
    text,
)
from keyprovider.kmip.messages import ProtocolVersion
from keyprovider.kmip.tags import (
    KEY_FORMAT_RAW,
    Algorithm,
    ObjectType,
    Operation,
    QueryFunction,
    RevocationReason,
    Tag,
    UsageMask,
)

KEY_BITS: Final = 256
KEY_SIZE: Final = KEY_BITS // 8
_USAGE: Final = UsageMask.ENCRYPT | UsageMask.DECRYPT

Result = TypeVar("Result", covariant=True)


class Request(Protocol[Result]):
    """One operation, with what it is about."""

    @property
    def operation(self) -> Operation:
        """Which one."""

    @property
    def repeatable(self) -> bool:
        """Whether carrying it out twice does what once does; only then it is sent again after a lost connection."""

    @property
    def key_id(self) -> str:
        """The key it is about, or nothing."""

    def payload(self, version: ProtocolVersion) -> Items:
        """The fields of the request's payload."""

    def result(self, payload: Items, version: ProtocolVersion) -> Result:
        """Read the fields of the response's payload, which are wiped afterwards."""


@dataclass(frozen=True, slots=True)
class DiscoverVersions:
    """Which versions the server speaks, of those named. The server's order of preference."""

    versions: tuple[ProtocolVersion, ...] = ()
    key_id: str = ""
    operation: ClassVar[Operation] = Operation.DISCOVER_VERSIONS
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return tuple(
            structure(
                Tag.PROTOCOL_VERSION,
                integer(Tag.PROTOCOL_VERSION_MAJOR, each.major),
                integer(Tag.PROTOCOL_VERSION_MINOR, each.minor),
            )
            for each in self.versions
        )

    def result(self, payload: Items, version: ProtocolVersion) -> tuple[ProtocolVersion, ...]:  # noqa: ARG002
        """See :class:`Request`."""
        found = []
        for item in payload:
            fields = required(find_structure((item,), Tag.PROTOCOL_VERSION), Tag.PROTOCOL_VERSION)
            major = required(find_integer(fields, Tag.PROTOCOL_VERSION_MAJOR), Tag.PROTOCOL_VERSION_MAJOR)
            minor = required(find_integer(fields, Tag.PROTOCOL_VERSION_MINOR), Tag.PROTOCOL_VERSION_MINOR)
            found.append(ProtocolVersion(major, minor))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class ServerInformation:
    """What a server says about itself."""

    vendor: str
    operations: frozenset[int]


@dataclass(frozen=True, slots=True)
class Query:
    """Which operations the server offers, and who made it."""

    functions: tuple[QueryFunction, ...] = (QueryFunction.OPERATIONS, QueryFunction.SERVER_INFORMATION)
    key_id: str = ""
    operation: ClassVar[Operation] = Operation.QUERY
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return tuple(enumeration(Tag.QUERY_FUNCTION, function) for function in self.functions)

    def result(self, payload: Items, version: ProtocolVersion) -> ServerInformation:  # noqa: ARG002
        """See :class:`Request`."""
        operations = (find_enumeration((item,), Tag.OPERATION) for item in payload)
        return ServerInformation(
            vendor=find_text(payload, Tag.VENDOR_IDENTIFICATION) or "",
            operations=frozenset(code for code in operations if code is not None),
        )


@dataclass(frozen=True, slots=True)
class Create:
    """Have the server make an AES-256 key. Gives its ID. Never repeated: each time makes a key."""

    attributes: tuple[Attribute, ...] = ()
    """Besides algorithm, length and usage."""
    usage: UsageMask = _USAGE
    key_id: str = ""
    operation: ClassVar[Operation] = Operation.CREATE
    repeatable: ClassVar[bool] = False

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`."""
        attributes = (
            Attribute("Cryptographic Algorithm", Algorithm.AES),
            Attribute("Cryptographic Usage Mask", self.usage),
            Attribute("Cryptographic Length", KEY_BITS),
            *self.attributes,
        )
        return (enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY), write_template(version, attributes))

    def result(self, payload: Items, version: ProtocolVersion) -> str:  # noqa: ARG002
        """See :class:`Request`."""
        kind = find_enumeration(payload, Tag.OBJECT_TYPE)
        if kind != ObjectType.SYMMETRIC_KEY:
            raise KmipMalformed(f"asked for a symmetric key, an object of type {kind} was made")
        return _identifier(payload)


@dataclass(frozen=True, slots=True)
class Register:
    """Put an AES-256 key into the server. Gives its ID. Never repeated."""

    key: SecretKey
    attributes: tuple[Attribute, ...] = ()
    usage: UsageMask = _USAGE
    key_id: str = ""
    operation: ClassVar[Operation] = Operation.REGISTER
    repeatable: ClassVar[bool] = False

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`."""
        block = structure(
            Tag.KEY_BLOCK,
            enumeration(Tag.KEY_FORMAT_TYPE, KEY_FORMAT_RAW),
            structure(Tag.KEY_VALUE, byte_string(Tag.KEY_MATERIAL, self.key.view())),
            enumeration(Tag.CRYPTOGRAPHIC_ALGORITHM, Algorithm.AES),
            integer(Tag.CRYPTOGRAPHIC_LENGTH, 8 * len(self.key)),
        )
        attributes = (Attribute("Cryptographic Usage Mask", self.usage), *self.attributes)
        return (
            enumeration(Tag.OBJECT_TYPE, ObjectType.SYMMETRIC_KEY),
            write_template(version, attributes),
            structure(Tag.SYMMETRIC_KEY, block),
        )

    def result(self, payload: Items, version: ProtocolVersion) -> str:  # noqa: ARG002
        """See :class:`Request`."""
        return _identifier(payload)


@dataclass(frozen=True, slots=True)
class Get:
    """Fetch an AES-256 key, in the clear inside TLS."""

    key_id: str
    operation: ClassVar[Operation] = Operation.GET
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id), enumeration(Tag.KEY_FORMAT_TYPE, KEY_FORMAT_RAW))

    def result(self, payload: Items, version: ProtocolVersion) -> SecretKey:  # noqa: ARG002
        """See :class:`Request`.

        Raises:
            KmipMalformed: Another key's, wrapped, or in another form than asked for.
            KmipKeyUnusable: WRONG_ALGORITHM (or no symmetric key at all) or WRONG_LENGTH.
        """
        check_identifier(payload, self.key_id)
        kind = find_enumeration(payload, Tag.OBJECT_TYPE)
        if kind != ObjectType.SYMMETRIC_KEY:
            raise KmipKeyUnusable(
                KmipKeyReason.WRONG_ALGORITHM, f"object of type {kind}, not a symmetric key", key_id=self.key_id
            )
        symmetric = required(find_structure(payload, Tag.SYMMETRIC_KEY), Tag.SYMMETRIC_KEY)
        block = required(find_structure(symmetric, Tag.KEY_BLOCK), Tag.KEY_BLOCK)
        if find_structure(block, Tag.KEY_WRAPPING_DATA) is not None:
            raise KmipMalformed("the key came wrapped, which was not asked for")
        form = find_enumeration(block, Tag.KEY_FORMAT_TYPE)
        if form != KEY_FORMAT_RAW:
            raise KmipMalformed(f"the key came in format {form}; asked for raw")
        algorithm = find_enumeration(block, Tag.CRYPTOGRAPHIC_ALGORITHM)
        if algorithm != Algorithm.AES:
            raise KmipKeyUnusable(
                KmipKeyReason.WRONG_ALGORITHM, f"algorithm {algorithm}; expected AES", key_id=self.key_id
            )
        value = required(find_structure(block, Tag.KEY_VALUE), Tag.KEY_VALUE)
        material = required(find_bytes(value, Tag.KEY_MATERIAL), Tag.KEY_MATERIAL)
        bits = find_integer(block, Tag.CRYPTOGRAPHIC_LENGTH)
        if bits != KEY_BITS or len(material) != KEY_SIZE:
            raise KmipKeyUnusable(
                KmipKeyReason.WRONG_LENGTH,
                f"says {bits} bits, holds {8 * len(material)}; expected {KEY_BITS}",
                key_id=self.key_id,
            )
        return take_key(material)


@dataclass(frozen=True, slots=True)
class Locate:
    """IDs of the keys that have all these attributes, at most ``maximum`` of them."""

    attributes: tuple[Attribute, ...]
    maximum: int = 100
    key_id: str = ""
    operation: ClassVar[Operation] = Operation.LOCATE
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`."""
        limit = integer(Tag.MAXIMUM_ITEMS, self.maximum)
        if version.major >= 2:
            return (limit, write_template(version, self.attributes))
        return (limit, *(write_attribute(version, attribute) for attribute in self.attributes))

    def result(self, payload: Items, version: ProtocolVersion) -> tuple[str, ...]:  # noqa: ARG002
        """See :class:`Request`."""
        found = (find_text((item,), Tag.UNIQUE_IDENTIFIER) for item in payload)
        return tuple(key_id for key_id in found if key_id is not None)


@dataclass(frozen=True, slots=True)
class Activate:
    """Make a key usable: Pre-Active becomes Active. Refused if it is not Pre-Active, so never repeated."""

    key_id: str
    operation: ClassVar[Operation] = Operation.ACTIVATE
    repeatable: ClassVar[bool] = False

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id),)

    def result(self, payload: Items, version: ProtocolVersion) -> None:  # noqa: ARG002
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)


@dataclass(frozen=True, slots=True)
class Revoke:
    """Take a key out of use: Compromised for that reason, Deactivated for others."""

    key_id: str
    reason: RevocationReason
    message: str = ""
    operation: ClassVar[Operation] = Operation.REVOKE
    repeatable: ClassVar[bool] = False

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        fields = [enumeration(Tag.REVOCATION_REASON_CODE, self.reason)]
        if self.message:
            fields.append(text(Tag.REVOCATION_MESSAGE, self.message))
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id), structure(Tag.REVOCATION_REASON, *fields))

    def result(self, payload: Items, version: ProtocolVersion) -> None:  # noqa: ARG002
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy a key's material for good. Refused while it is Active."""

    key_id: str
    operation: ClassVar[Operation] = Operation.DESTROY
    repeatable: ClassVar[bool] = False

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id),)

    def result(self, payload: Items, version: ProtocolVersion) -> None:  # noqa: ARG002
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)


def take_key(material: memoryview) -> SecretKey:
    """Copy key bytes out of a message into secret pages."""

    def write(target: memoryview) -> None:
        target[:] = material

    return SecretKey.written_by(len(material), write)


def check_identifier(payload: Items, key_id: str) -> None:
    """Check that an answer is about the key that was asked about.

    Raises:
        KmipMalformed: It is about another, or none.
    """
    if _identifier(payload) != key_id:
        raise KmipMalformed("the answer is about another key than was asked about")


def _identifier(payload: Items) -> str:
    key_id = required(find_text(payload, Tag.UNIQUE_IDENTIFIER), Tag.UNIQUE_IDENTIFIER)
    if not key_id:
        raise KmipMalformed(f"{name_of(Tag.UNIQUE_IDENTIFIER)} is empty")
    return key_id
