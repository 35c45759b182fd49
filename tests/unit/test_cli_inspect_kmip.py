"""``garant inspect kmip``: captures become readable, and messages again."""

from pathlib import Path

import pytest

from cli.main import main
from keyprovider.kmip.ttlv import Item, ItemType, encode

MESSAGE = encode(Item(0x420078, ItemType.STRUCTURE, (Item(0x42000D, ItemType.INTEGER, 1),)))


@pytest.mark.parametrize("capture", [MESSAGE, MESSAGE.hex().encode()], ids=["binary", "hexadecimal"])
def test_a_capture_becomes_a_tree_and_a_message_again(
    capture: bytes, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """What is shown of a message makes the same message again."""
    (tmp_path / "capture").write_bytes(capture)
    assert main(["inspect", "kmip", str(tmp_path / "capture")]) == 0
    shown = capfdbinary.readouterr().out
    assert b"BatchCount" in shown.replace(b" ", b"")
    (tmp_path / "tree").write_bytes(shown)
    assert main(["inspect", "kmip", "--encode", str(tmp_path / "tree")]) == 0
    assert capfdbinary.readouterr().out == MESSAGE


@pytest.mark.parametrize("arguments", [[], ["--encode"]])
def test_what_is_not_kmip_is_one_line(
    arguments: list[str], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A file that is neither a capture nor a tree: exit code 2 and one line."""
    (tmp_path / "letter").write_bytes(b"Dear sir,\n\xff")
    assert main(["inspect", "kmip", *arguments, str(tmp_path / "letter")]) == 2
    assert len(capfdbinary.readouterr().err.splitlines()) == 1
