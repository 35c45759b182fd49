"""The published KMIP messages, against the encoder, their description, and PyKMIP's codec (R-ATT-1 to R-ATT-4)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from keyprovider.errors import TtlvError
from keyprovider.kmip.attribute_operations import AddAttribute, GetAttributes, ModifyAttribute
from keyprovider.kmip.attributes import Attribute
from keyprovider.kmip.describe import describe, encode_description
from keyprovider.kmip.messages import Failure, ProtocolVersion, RequestItem, build_request, parse_response
from keyprovider.kmip.operations import Activate, Create, DiscoverVersions, Get, Query, Request
from keyprovider.kmip.tags import Operation, QueryFunction

_ROOT = Path(__file__).parents[2]
_CASES: list[dict[str, Any]] = json.loads((_ROOT / "docs" / "vectors" / "kmip-vcenter.json").read_text())["cases"]
_REQUESTS = [case for case in _CASES if "batch" in case]
_OLD = [case for case in _REQUESTS if case["version"].startswith("1.")]

_REENCODE = """
import sys
import tests.pykmip_server
from kmip.core import enums, primitives, utils
from kmip.core.messages import messages

read = primitives.TextString.read

def read_and_correct(text, *args, **options):
    read(text, *args, **options)
    text.padding_length %= 8  # or it pads a text of 8 bytes by 8 more

primitives.TextString.read = read_and_correct
for line in sys.stdin:
    request = messages.RequestMessage()
    request.read(utils.BytearrayStream(bytes.fromhex(line)), kmip_version=enums.KMIPVersion.KMIP_1_1)
    again = utils.BytearrayStream()
    request.write(again, kmip_version=enums.KMIPVersion.KMIP_1_1)
    print(again.buffer.hex())
"""


def _request(entry: dict[str, Any]) -> Request[object]:
    key_id = entry.get("key_id", "")
    attribute = Attribute(*entry["attribute"]) if "attribute" in entry else Attribute("", None)
    requests: dict[str, Request[object]] = {
        "DISCOVER_VERSIONS": DiscoverVersions(),
        "QUERY": Query((QueryFunction.SERVER_INFORMATION,)),
        "CREATE": Create(),
        "GET": Get(key_id),
        "GET_ATTRIBUTES": GetAttributes(key_id, tuple(entry.get("names", ()))),
        "ADD_ATTRIBUTE": AddAttribute(key_id, attribute),
        "MODIFY_ATTRIBUTE": ModifyAttribute(key_id, attribute),
        "ACTIVATE": Activate(key_id),
    }
    return requests[entry["operation"]]


def build(case: dict[str, Any]) -> bytes:
    """The request that a case describes."""
    version = ProtocolVersion(*map(int, case["version"].split(".")))
    requests = [(_request(entry), bytes.fromhex(entry["batch_id"])) for entry in case["batch"]]
    items = [RequestItem(each.operation, batch_id, each.payload(version)) for each, batch_id in requests]
    return bytes(build_request(version, items))


@pytest.mark.parametrize("case", _REQUESTS, ids=lambda case: case["name"])
def test_requests_are_encoded_as_published(case: dict[str, Any]) -> None:
    """Every request of vCenter's sequence, and those of KMIP 2.1, come out byte for byte (R-ATT-1, R-ATT-4)."""
    assert build(case).hex() == case["message"]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case["name"])
def test_messages_are_described_as_published(case: dict[str, Any]) -> None:
    """A message's description is the published one, from binary and hexadecimal, and encodes to the message again."""
    message = bytes.fromhex(case["message"])
    text = "\n".join(case["description"]) + "\n"
    assert describe(message) == text
    assert describe(case["message"].encode() + b"\n") == text
    assert encode_description(text) == message


def test_another_codec_reads_the_same() -> None:
    """PyKMIP's codec decodes the requests of 1.1 and encodes them to the same bytes."""
    lines = "".join(case["message"] + "\n" for case in _OLD)
    argv = [sys.executable, "-W", "ignore", "-c", _REENCODE]
    done = subprocess.run(argv, input=lines, capture_output=True, text=True, check=True, cwd=_ROOT)
    assert done.stdout == lines
    assert len(_OLD) >= 10


def test_the_error_without_items_is_one_for_the_whole_batch() -> None:
    """What PyKMIP answered to vCenter's batch of three: one item without ID, of version 1.0 (R-ATT-1)."""
    (answer,) = [case for case in _CASES if case["name"] == "error without items"]
    items = [RequestItem(Operation.ADD_ATTRIBUTE, bytes([number]), ()) for number in range(3)]
    response = parse_response(bytes.fromhex(answer["message"]), version=ProtocolVersion(1, 1), items=items)
    assert response.version == (1, 0)
    reasons = [
        outcome.reason for outcome in response.outcomes if isinstance(outcome, Failure) and outcome.whole_request
    ]
    assert reasons == [4, 4, 4]


def test_keys_are_shown_only_when_asked_for() -> None:
    """Key bytes and passwords are stars, also where the key is a structure; stars cannot be encoded."""
    material = "4200430800000008" + "41" * 8
    assert "41" not in describe(bytes.fromhex(material))
    assert "4141414141414141" in describe(bytes.fromhex(material), show_secrets=True)
    transparent = "4200430100000010" + "42003f0800000008" + "41" * 8
    assert describe(bytes.fromhex(transparent)) == "Key Material (Structure): ***\n"
    with pytest.raises(TtlvError, match="not shown"):
        encode_description(describe(bytes.fromhex(material)))


@pytest.mark.parametrize(
    "text",
    [
        "Unknown Tag (Integer): 1",
        "Batch Count (Number): 1",
        "Batch Count (Integer): one",
        "Batch Count (Integer)",
        "   Batch Count (Integer): 1",
        "    Batch Count (Integer): 1",
        "Batch Count: 1",
        "Fresh (Boolean): yes",
        "Username (Text String): 5",
        "Data (Byte String): 4",
        "Request Header (Structure): 1",
    ],
)
def test_descriptions_with_an_error_are_refused(text: str) -> None:
    """A line that is not as described is refused by its number."""
    with pytest.raises(TtlvError, match="line 1"):
        encode_description(text)


@pytest.mark.parametrize("capture", [b"", b"\x00", b"420", b"42007B0100000008", b"\xff" * 64])
def test_captures_that_are_not_ttlv_are_refused(capture: bytes) -> None:
    """What is no TTLV raises the one error."""
    with pytest.raises(TtlvError):
        describe(capture)
