"""KMIP messages: only an answer to what was asked is read, and malformed ones raise one error."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyprovider.errors import KmipKeyMissing, KmipKeyReason, KmipKeyUnusable, KmipMalformed, KmipRefusal, KmipRefused
from keyprovider.keymaterial import SecretKey
from keyprovider.kmip.attribute_operations import AddAttribute, GetAttributeList, GetAttributes
from keyprovider.kmip.attributes import Attribute, key_state, read_attributes, read_references, write_attribute
from keyprovider.kmip.encryption import Decrypt
from keyprovider.kmip.fields import byte_string, enumeration, integer, structure, text
from keyprovider.kmip.messages import Credential, Failure, ProtocolVersion, RequestItem, build_request, parse_response
from keyprovider.kmip.operations import Create, DiscoverVersions, Get, Locate, Query, Register, Request
from keyprovider.kmip.tags import KeyState, Operation, ResultReason, Tag
from keyprovider.kmip.ttlv import Item, ItemType, encode

V1_4 = ProtocolVersion(1, 4)
V2_1 = ProtocolVersion(2, 1)
ITEMS = (RequestItem(Operation.GET, b"00000001", ()), RequestItem(Operation.GET_ATTRIBUTES, b"00000002", ()))

REQUESTS: list[Request[object]] = [
    Create(),
    DiscoverVersions(),
    Query(),
    Get("k"),
    GetAttributes("k", ("State",)),
    GetAttributeList("k"),
    AddAttribute("k", Attribute("x-A", "b")),
    Locate(()),
    Decrypt("k", bytes(48), bytes(12), b""),
]

_tags = st.sampled_from([int(tag) for tag in Tag])
_leaves = st.one_of(
    st.builds(text, _tags, st.sampled_from(["k", "", "x-A", "State"])),
    st.builds(enumeration, _tags, st.integers(0, 12)),
    st.builds(integer, _tags, st.sampled_from([0, 1, 2, 4, 256, -1])),
    st.builds(byte_string, _tags, st.sampled_from([b"", b"00000001", bytes(32)])),
)
_items = st.recursive(
    _leaves, lambda inner: st.builds(lambda tag, kids: structure(tag, *kids), _tags, st.lists(inner, max_size=4))
)


def _message(*batch: Item, count: int | None = None, version: ProtocolVersion = V1_4) -> bytes:
    spoken = structure(
        Tag.PROTOCOL_VERSION,
        integer(Tag.PROTOCOL_VERSION_MAJOR, version.major),
        integer(Tag.PROTOCOL_VERSION_MINOR, version.minor),
    )
    header = structure(Tag.RESPONSE_HEADER, spoken, integer(Tag.BATCH_COUNT, len(batch) if count is None else count))
    return bytes(encode(structure(Tag.RESPONSE_MESSAGE, header, *batch)))


def _done(item: RequestItem, *extra: Item) -> Item:
    return structure(
        Tag.BATCH_ITEM,
        enumeration(Tag.OPERATION, item.operation),
        byte_string(Tag.UNIQUE_BATCH_ITEM_ID, item.batch_id),
        enumeration(Tag.RESULT_STATUS, 0),
        structure(Tag.RESPONSE_PAYLOAD, text(Tag.UNIQUE_IDENTIFIER, "k")),
        *extra,
    )


@given(st.binary(max_size=300))
def test_only_one_error_leaves_the_parser_whatever_comes(data: bytes) -> None:
    """Any bytes are a response or raise KmipMalformed."""
    try:
        parse_response(data, version=V1_4, items=ITEMS)
    except KmipMalformed:
        return


@given(st.lists(_items, max_size=4), st.sampled_from([V1_4, V2_1]))
def test_only_one_error_leaves_the_parser_for_plausible_messages(batch: list[Item], version: ProtocolVersion) -> None:
    """Any structure of KMIP's own tags is a response or raises KmipMalformed."""
    wrapped = [structure(Tag.BATCH_ITEM, *item.value) for item in batch if isinstance(item.value, tuple)]
    for message in (_message(*batch, version=version), _message(*wrapped, version=version)):
        try:
            parse_response(message, version=V1_4, items=ITEMS)
        except KmipMalformed:
            continue


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_only_one_error_leaves_the_parser_for_changed_messages(position: int, change: int) -> None:
    """A response with one byte changed is a response or raises KmipMalformed."""
    message = bytearray(_message(_done(ITEMS[0]), _done(ITEMS[1])))
    message[position % len(message)] ^= change
    try:
        parse_response(message, version=V1_4, items=ITEMS)
    except KmipMalformed:
        return


@given(st.sampled_from(REQUESTS), st.lists(_items, max_size=5), st.sampled_from([V1_4, V2_1]))
def test_only_kmip_errors_leave_the_operations(
    request: Request[object], payload: list[Item], version: ProtocolVersion
) -> None:
    """Whatever payload an operation is answered with, it is read or refused by a KMIP error."""
    views = tuple(
        item._replace(value=memoryview(item.value)) if isinstance(item.value, bytes) else item for item in payload
    )
    try:
        request.result(views, version)
    except (KmipMalformed, KmipKeyUnusable):
        return


def test_outcomes_are_in_the_order_of_the_request() -> None:
    """Answers in another order come out in the request's."""
    marked = _done(ITEMS[0], integer(Tag.MAXIMUM_ITEMS, 1))
    response = parse_response(_message(_done(ITEMS[1]), marked), version=V1_4, items=ITEMS)
    assert [type(outcome) for outcome in response.outcomes] == [tuple, tuple]


@pytest.mark.parametrize(
    "message",
    [
        _message(),
        _message(_done(ITEMS[0])),
        _message(_done(ITEMS[0]), _done(ITEMS[0])),
        _message(_done(ITEMS[0]), _done(ITEMS[1]), count=1),
        _message(_done(ITEMS[0]), _done(ITEMS[1]._replace(operation=Operation.GET))),
        _message(_done(ITEMS[0]), _done(ITEMS[1]._replace(batch_id=b"00000003"))),
        _message(_done(ITEMS[0]), _done(ITEMS[1], enumeration(Tag.RESULT_STATUS, 0))),
        _message(_done(ITEMS[0]), _done(ITEMS[1]), version=ProtocolVersion(1, 3)),
        _message(
            _done(ITEMS[0]),
            _done(
                ITEMS[1],
                structure(Tag.MESSAGE_EXTENSION, Item(Tag.CRITICALITY_INDICATOR, ItemType.BOOLEAN, True)),
            ),
        ),
    ],
    ids=["empty", "one of two", "twice", "count", "operation", "id", "two states", "version", "critical extension"],
)
def test_answers_to_something_else_are_refused(message: bytes) -> None:
    """Count, IDs, operations and version must be those of the request, and critical extensions are not ignored."""
    with pytest.raises(KmipMalformed):
        parse_response(message, version=V1_4, items=ITEMS)


@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        (ResultReason.ITEM_NOT_FOUND, KmipKeyMissing, None),
        (ResultReason.OBJECT_NOT_FOUND, KmipKeyMissing, None),
        (ResultReason.OBJECT_DESTROYED, KmipKeyUnusable, KmipKeyReason.DESTROYED),
        (ResultReason.NOT_EXTRACTABLE, KmipKeyUnusable, KmipKeyReason.NOT_EXTRACTABLE),
        (ResultReason.PERMISSION_DENIED, KmipRefused, KmipRefusal.PERMISSION_DENIED),
        (ResultReason.AUTHENTICATION_NOT_SUCCESSFUL, KmipRefused, KmipRefusal.NOT_AUTHENTICATED),
        (ResultReason.WRONG_KEY_LIFECYCLE_STATE, KmipRefused, KmipRefusal.WRONG_STATE),
        (0x7FFF, KmipRefused, KmipRefusal.OTHER),
    ],
)
def test_result_reasons_become_distinct_errors(code: int, error: type[Exception], reason: object) -> None:
    """A missing key, an unusable one and a refusal are told apart (R-ERR-2)."""
    raised = Failure(code, "no").error("k")
    assert type(raised) is error
    assert getattr(raised, "reason", None) is reason


def test_a_failure_about_no_key_is_no_missing_key() -> None:
    """Only a request about a key can find it missing."""
    assert isinstance(Failure(ResultReason.ITEM_NOT_FOUND, "no template").error(), KmipRefused)


def test_what_a_server_says_is_cut_and_cleaned() -> None:
    """A server's own words reach logs and events short and printable."""
    item = structure(
        Tag.BATCH_ITEM,
        enumeration(Tag.RESULT_STATUS, 1),
        enumeration(Tag.RESULT_REASON, 1),
        text(Tag.RESULT_MESSAGE, "a\n\x1b[31m" + "b" * 5000),
    )
    outcome = parse_response(_message(item), version=V1_4, items=ITEMS).outcomes[0]
    assert isinstance(outcome, Failure)
    assert outcome.message.startswith("a[31mbbb")
    assert len(outcome.message) == 200


@given(
    st.sampled_from([V1_4, V2_1]),
    st.sampled_from(["x-Name", "x-Vendor"]),
    st.text(max_size=30),
)
def test_custom_attributes_are_read_as_written(version: ProtocolVersion, name: str, value: str) -> None:
    """An x- attribute is the same name and value in 1.x and 2.x."""
    written = write_attribute(version, Attribute(name, value))
    payload = (written,) if version.major == 1 else (structure(Tag.ATTRIBUTES, written),)
    assert read_attributes(version, payload) == (Attribute(name, value),)


@pytest.mark.parametrize("version", [V1_4, V2_1])
def test_standard_attributes_are_read_as_written(version: ProtocolVersion) -> None:
    """State and name are the same in 1.x and 2.x; a state that KMIP does not know is refused."""
    attributes = (Attribute("State", KeyState.ACTIVE), Attribute("Name", "a key"))
    written = tuple(write_attribute(version, attribute) for attribute in attributes)
    payload = written if version.major == 1 else (structure(Tag.ATTRIBUTES, *written),)
    read = read_attributes(version, payload)
    assert read == (Attribute("State", 2), Attribute("Name", "a key"))
    assert key_state(read) is KeyState.ACTIVE
    for unknown in ((), (Attribute("State", 9),)):
        with pytest.raises(KmipMalformed):
            key_state(unknown)


@pytest.mark.parametrize("version", [V1_4, V2_1])
def test_names_of_attributes_are_read_as_written(version: ProtocolVersion) -> None:
    """The names asked for are those read back, standard ones and one's own."""
    names = ("State", "x-Vendor", "Cryptographic Length")
    payload = GetAttributes("k", names).payload(version)[1:]
    assert read_references(version, payload) == names


def test_a_request_with_a_key_can_be_wiped() -> None:
    """The key in a request lies in the message's own buffer only once."""
    with SecretKey.random() as key:
        plain = bytes(key.view())
        item = RequestItem(Operation.REGISTER, b"00000001", Register(key).payload(V1_4))
        message = build_request(V1_4, [item], credential=Credential("user", "word"))
        assert message.count(plain) == 1
        message[:] = bytes(len(message))
        assert bytes(key.view()) == plain
