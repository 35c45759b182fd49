"""Requests and responses of KMIP 1.0 to 1.4 and 2.0 to 2.1: header and batch (KMIP 1.4, section 7; 2.1, section 8).

A response is believed only as far as it answers what was asked: every item carries the batch ID and the operation of
one item of the request, each at most once, in any order. One item alone with neither is an error of the whole request;
and an error may come in any protocol version, for a server that cannot read a request does not know its version.

Pure. :class:`KmipMalformed` is the only error of parsing; what the server refused comes back as :class:`Failure`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from keyprovider.errors import (
    KmipError,
    KmipKeyMissing,
    KmipKeyReason,
    KmipKeyUnusable,
    KmipMalformed,
    KmipRefusal,
    KmipRefused,
    TtlvError,
)
from keyprovider.kmip.fields import (
    Items,
    byte_string,
    children,
    enumeration,
    find_bytes,
    find_enumeration,
    find_integer,
    find_structure,
    find_text,
    integer,
    required,
    structure,
    text,
)
from keyprovider.kmip.tags import CREDENTIAL_USERNAME_AND_PASSWORD, Operation, ResultReason, ResultStatus, Tag
from keyprovider.kmip.ttlv import Item, decode, encode

_MAX_MESSAGE_TEXT: Final = 200
"""Characters of a server's own words that are passed on."""


class ProtocolVersion(NamedTuple):
    """A version of KMIP."""

    major: int
    minor: int

    def __str__(self) -> str:
        """As in "1.4"."""
        return f"{self.major}.{self.minor}"


PREFERRED_VERSIONS: Final = tuple(
    ProtocolVersion(*pair) for pair in ((1, 4), (1, 3), (1, 2), (1, 1), (1, 0), (2, 1), (2, 0))
)
"""The versions spoken here, best first. 2.x comes last: fewer servers have been seen to speak it well."""


@dataclass(frozen=True, slots=True)
class Credential:
    """User name and password, for servers that want them besides the client certificate (KMIP 1.4, 2.1.2)."""

    username: str
    password: str = field(repr=False)


class RequestItem(NamedTuple):
    """One operation of a batch."""

    operation: Operation
    batch_id: bytes
    payload: Items


@dataclass(frozen=True, slots=True)
class Failure:
    """The server did not carry out one operation."""

    reason: int
    """Result reason as sent; 0 if there was none."""
    message: str
    whole_request: bool = False
    """The error came without operation and batch ID."""
    processed: bool = True
    """False if the server stopped at an earlier failure."""

    def error(self, key_id: str = "") -> KmipError:
        """The exception that says so, for the request about this key."""
        if not self.processed:
            return KmipRefused(KmipRefusal.NOT_PROCESSED, self.message, key_id=key_id)
        if key_id and self.reason in _KEY_MISSING:
            return KmipKeyMissing(self.message, key_id=key_id)
        if key_id and self.reason in _KEY_UNUSABLE:
            return KmipKeyUnusable(_KEY_UNUSABLE[self.reason], self.message, key_id=key_id)
        refusal = _REFUSALS.get(self.reason, KmipRefusal.OTHER)
        return KmipRefused(refusal, f"{self.message} ({_reason_name(self.reason)})", code=self.reason, key_id=key_id)


@dataclass(frozen=True, slots=True)
class Response:
    """A response that answers its request."""

    version: ProtocolVersion
    outcomes: tuple[Items | Failure, ...]
    """One for each item of the request, in its order: the fields of its payload, or why there are none."""


_KEY_MISSING: Final = frozenset({ResultReason.ITEM_NOT_FOUND, ResultReason.OBJECT_NOT_FOUND})
_KEY_UNUSABLE: Final[dict[int, KmipKeyReason]] = {
    ResultReason.OBJECT_DESTROYED: KmipKeyReason.DESTROYED,
    ResultReason.SENSITIVE: KmipKeyReason.NOT_EXTRACTABLE,
    ResultReason.NOT_EXTRACTABLE: KmipKeyReason.NOT_EXTRACTABLE,
}
_REFUSALS: Final[dict[int, KmipRefusal]] = {
    ResultReason.AUTHENTICATION_NOT_SUCCESSFUL: KmipRefusal.NOT_AUTHENTICATED,
    ResultReason.INVALID_TICKET: KmipRefusal.NOT_AUTHENTICATED,
    ResultReason.BAD_PASSWORD: KmipRefusal.NOT_AUTHENTICATED,
    ResultReason.PERMISSION_DENIED: KmipRefusal.PERMISSION_DENIED,
    ResultReason.NOT_AUTHORISED: KmipRefusal.PERMISSION_DENIED,
    ResultReason.OPERATION_NOT_SUPPORTED: KmipRefusal.NOT_SUPPORTED,
    ResultReason.FEATURE_NOT_SUPPORTED: KmipRefusal.NOT_SUPPORTED,
    ResultReason.KEY_FORMAT_TYPE_NOT_SUPPORTED: KmipRefusal.NOT_SUPPORTED,
    ResultReason.UNSUPPORTED_ATTRIBUTE: KmipRefusal.NOT_SUPPORTED,
    ResultReason.UNSUPPORTED_PROTOCOL_VERSION: KmipRefusal.NOT_SUPPORTED,
    ResultReason.INVALID_MESSAGE: KmipRefusal.BAD_REQUEST,
    ResultReason.MISSING_DATA: KmipRefusal.BAD_REQUEST,
    ResultReason.INVALID_FIELD: KmipRefusal.BAD_REQUEST,
    ResultReason.ILLEGAL_OPERATION: KmipRefusal.WRONG_STATE,
    ResultReason.WRONG_KEY_LIFECYCLE_STATE: KmipRefusal.WRONG_STATE,
    ResultReason.GENERAL_FAILURE: KmipRefusal.SERVER_FAILURE,
    ResultReason.INTERNAL_SERVER_ERROR: KmipRefusal.SERVER_FAILURE,
    ResultReason.SERVER_LIMIT_EXCEEDED: KmipRefusal.SERVER_FAILURE,
    ResultReason.CRYPTOGRAPHIC_FAILURE: KmipRefusal.SERVER_FAILURE,
}


def build_request(
    version: ProtocolVersion, items: Sequence[RequestItem], *, credential: Credential | None = None
) -> bytearray:
    """Encode a request of one or more operations.

    The header holds no more than it must: the plainest requests are those that every key server has seen. A server
    therefore stops at the first operation that fails (the default of Batch Error Continuation Option).

    Raises:
        TtlvError: A value does not fit, or the request is too large.
    """
    header = [
        structure(
            Tag.PROTOCOL_VERSION,
            integer(Tag.PROTOCOL_VERSION_MAJOR, version.major),
            integer(Tag.PROTOCOL_VERSION_MINOR, version.minor),
        )
    ]
    if credential is not None:
        header.append(_authentication(credential))
    header.append(integer(Tag.BATCH_COUNT, len(items)))
    batch = [
        structure(
            Tag.BATCH_ITEM,
            enumeration(Tag.OPERATION, item.operation),
            byte_string(Tag.UNIQUE_BATCH_ITEM_ID, item.batch_id),
            structure(Tag.REQUEST_PAYLOAD, *item.payload),
        )
        for item in items
    ]
    return encode(structure(Tag.REQUEST_MESSAGE, structure(Tag.REQUEST_HEADER, *header), *batch))


def parse_response(
    data: bytes | bytearray | memoryview, *, version: ProtocolVersion, items: Sequence[RequestItem]
) -> Response:
    """Read the response to a request of these items.

    Byte strings inside are views of ``data``; they must be used before it is wiped.

    Raises:
        KmipMalformed: It is no response to this request.
    """
    try:
        message = decode(data)
    except TtlvError as exc:
        raise KmipMalformed(f"the answer is not TTLV: {exc}") from exc
    fields = children(message, Tag.RESPONSE_MESSAGE)
    if not fields:
        raise KmipMalformed("the answer is empty")
    answered, count = _read_header(children(fields[0], Tag.RESPONSE_HEADER))
    batch = [children(item, Tag.BATCH_ITEM) for item in fields[1:]]
    if count != len(batch) or not batch:
        raise KmipMalformed(f"the answer says {count} batch items and holds {len(batch)}")
    outcomes = _match(batch, items)
    if answered != version and not all(isinstance(outcome, Failure) for outcome in outcomes):
        raise KmipMalformed(f"asked in KMIP {version}, answered in {answered}")
    return Response(answered, outcomes)


def _authentication(credential: Credential) -> Item:
    value = structure(
        Tag.CREDENTIAL_VALUE, text(Tag.USERNAME, credential.username), text(Tag.PASSWORD, credential.password)
    )
    kind = enumeration(Tag.CREDENTIAL_TYPE, CREDENTIAL_USERNAME_AND_PASSWORD)
    return structure(Tag.AUTHENTICATION, structure(Tag.CREDENTIAL, kind, value))


def _read_header(header: Items) -> tuple[ProtocolVersion, int]:
    version = required(find_structure(header, Tag.PROTOCOL_VERSION), Tag.PROTOCOL_VERSION)
    answered = ProtocolVersion(
        required(find_integer(version, Tag.PROTOCOL_VERSION_MAJOR), Tag.PROTOCOL_VERSION_MAJOR),
        required(find_integer(version, Tag.PROTOCOL_VERSION_MINOR), Tag.PROTOCOL_VERSION_MINOR),
    )
    return answered, required(find_integer(header, Tag.BATCH_COUNT), Tag.BATCH_COUNT)


def _match(batch: Sequence[Items], items: Sequence[RequestItem]) -> tuple[Items | Failure, ...]:
    if len(batch) == 1 and (failure := _whole_request_failure(batch[0])) is not None:
        return (failure,) * len(items)
    asked = {item.batch_id: item.operation for item in items}
    outcomes: dict[bytes, Items | Failure] = {}
    for fields in batch:
        batch_id = bytes(required(find_bytes(fields, Tag.UNIQUE_BATCH_ITEM_ID), Tag.UNIQUE_BATCH_ITEM_ID))
        if batch_id not in asked or batch_id in outcomes:
            raise KmipMalformed("a batch item answers nothing that was asked, or answers it twice")
        operation = required(find_enumeration(fields, Tag.OPERATION), Tag.OPERATION)
        if operation != asked[batch_id]:
            raise KmipMalformed(f"asked for {asked[batch_id].name}, answered operation {operation:#x}")
        outcomes[batch_id] = _read_outcome(fields)
    if len(outcomes) < len(asked) and not any(isinstance(outcome, Failure) for outcome in outcomes.values()):
        raise KmipMalformed(f"{len(asked)} operations asked for, {len(outcomes)} answered, none of them failed")
    skipped = Failure(0, "not carried out after an earlier failure", processed=False)
    return tuple(outcomes.get(item.batch_id, skipped) for item in items)


def _whole_request_failure(fields: Items) -> Failure | None:
    if find_bytes(fields, Tag.UNIQUE_BATCH_ITEM_ID) is not None:
        return None
    outcome = _read_outcome(fields)
    if not isinstance(outcome, Failure):
        raise KmipMalformed("a batch item succeeded that does not say which it is")
    return Failure(outcome.reason, outcome.message, whole_request=True)


def _read_outcome(fields: Items) -> Items | Failure:
    _refuse_critical_extension(fields)
    status = required(find_enumeration(fields, Tag.RESULT_STATUS), Tag.RESULT_STATUS)
    if status == ResultStatus.SUCCESS:
        return required(find_structure(fields, Tag.RESPONSE_PAYLOAD), Tag.RESPONSE_PAYLOAD)
    if status not in (ResultStatus.OPERATION_FAILED, ResultStatus.OPERATION_UNDONE):
        # Nothing here asks for asynchronous work, so "pending" is no answer either.
        raise KmipMalformed(f"result status {status}")
    reason = required(find_enumeration(fields, Tag.RESULT_REASON), Tag.RESULT_REASON)
    said = find_text(fields, Tag.RESULT_MESSAGE) or "no message"
    return Failure(reason, "".join(char for char in said if char.isprintable())[:_MAX_MESSAGE_TEXT])


def _refuse_critical_extension(fields: Items) -> None:
    extension = find_structure(fields, Tag.MESSAGE_EXTENSION)
    if extension is None:
        return
    if any(item.tag == Tag.CRITICALITY_INDICATOR and item.value is True for item in extension):
        raise KmipMalformed("the answer holds a critical extension, which is not understood")


def _reason_name(reason: int) -> str:
    try:
        return ResultReason(reason).name
    except ValueError:
        return f"result reason {reason:#x}"
