"""Operations on the attributes of keys (KMIP 1.4, 4.12 to 4.15; 2.1, 6.1). See ``operations`` for what they share.

Pure. :class:`KmipMalformed` is the only error of reading an answer.
"""

from dataclasses import dataclass
from typing import ClassVar

from keyprovider.kmip.attributes import (
    Attribute,
    read_attributes,
    read_references,
    write_attribute,
    write_reference,
)
from keyprovider.kmip.fields import Items, structure, text
from keyprovider.kmip.messages import ProtocolVersion
from keyprovider.kmip.operations import check_identifier
from keyprovider.kmip.tags import Operation, Tag


@dataclass(frozen=True, slots=True)
class GetAttributes:
    """Read attributes by name. One that the key lacks is left out of the answer."""

    key_id: str
    names: tuple[str, ...]
    operation: ClassVar[Operation] = Operation.GET_ATTRIBUTES
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`."""
        return (
            text(Tag.UNIQUE_IDENTIFIER, self.key_id),
            *(write_reference(version, name) for name in self.names),
        )

    def result(self, payload: Items, version: ProtocolVersion) -> tuple[Attribute, ...]:
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)
        return read_attributes(version, payload)


@dataclass(frozen=True, slots=True)
class GetAttributeList:
    """The names of a key's attributes."""

    key_id: str
    operation: ClassVar[Operation] = Operation.GET_ATTRIBUTE_LIST
    repeatable: ClassVar[bool] = True

    def payload(self, version: ProtocolVersion) -> Items:  # noqa: ARG002
        """See :class:`Request`."""
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id),)

    def result(self, payload: Items, version: ProtocolVersion) -> tuple[str, ...]:
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)
        return read_references(version, payload)


@dataclass(frozen=True, slots=True)
class _ChangeAttribute:
    key_id: str
    attribute: Attribute

    def payload(self, version: ProtocolVersion) -> Items:
        """See :class:`Request`."""
        attribute = write_attribute(version, self.attribute)
        if version.major >= 2:
            attribute = structure(Tag.NEW_ATTRIBUTE, attribute)
        return (text(Tag.UNIQUE_IDENTIFIER, self.key_id), attribute)

    def result(self, payload: Items, version: ProtocolVersion) -> None:  # noqa: ARG002
        """See :class:`Request`."""
        check_identifier(payload, self.key_id)


@dataclass(frozen=True, slots=True)
class AddAttribute(_ChangeAttribute):
    """Give a key an attribute that it lacks. Refused if it has it, so never repeated."""

    operation: ClassVar[Operation] = Operation.ADD_ATTRIBUTE
    repeatable: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class ModifyAttribute(_ChangeAttribute):
    """Change an attribute that a key has."""

    operation: ClassVar[Operation] = Operation.MODIFY_ATTRIBUTE
    repeatable: ClassVar[bool] = True
