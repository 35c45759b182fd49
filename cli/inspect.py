"""``garant inspect``: look into files, offline. Needs no site, service or key.

Exit codes: 0 it could be read; 2 it could not (one line says why). Prints JSON unless ``--output table`` is given.
"""

import base64
import datetime
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.errors import BadInput
from cli.output import OutputFormat, print_json, print_record, print_table
from cli.session import OutputOption

app = typer.Typer(no_args_is_help=True)

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to read.")]
_MAX_FILE_BYTES = 64 * 1024 * 1024
_MAX_TOKEN_CHARACTERS = 64 * 1024
_TIMES = ("iat", "nbf", "exp")


@app.callback()
def _group() -> None:
    """Look into files, offline."""


@app.command("event-log")
def event_log(file: FileArgument, output: OutputOption = None) -> None:
    """Describe a firmware event log, and the PCR values that it would explain.

    Example: garant inspect event-log /sys/kernel/security/tpm0/binary_bios_measurements
    """
    from attestation.errors import WireError
    from attestation.verifier.log_description import describe_log

    try:
        described = describe_log(_read(file))
    except WireError as exc:
        raise BadInput(f"{file} is not an event log: {exc}") from exc
    if output is not OutputFormat.TABLE:
        print_json(described)
        return
    print_table(("index", "pcr", "type", "digest_matches_data", "description"), described["events"], empty="no events")
    for bank, values in described["pcrs"].items():
        print_record({f"{bank}:{pcr}": value for pcr, value in values.items()})


@app.command("token")
def token(file: FileArgument, output: OutputOption = None) -> None:
    """Show what a token says: an attestation token, grant, join token, heartbeat. Its signature is NOT checked.

    Example: garant inspect token token.jwt
    """
    text = _text(file)
    header, payload = _part(file, text, 0), _part(file, text, 1)
    if output is not OutputFormat.TABLE:
        times = {name: _time(payload[name]) for name in _TIMES if name in payload}
        print_json({"header": header, "payload": payload, "times": times, "signature_checked": False})
        return
    rows = [{"claim": name, "value": _cell(value)} for name, value in payload.items()]
    print_table(("claim", "value"), rows, empty="no claims")


@app.command("kmip")
def kmip(
    file: FileArgument,
    encode: Annotated[bool, typer.Option(help="The other way: from such a tree to the binary message.")] = False,
    show_secrets: Annotated[bool, typer.Option(help="Show keys, passwords and data too.")] = False,
    output: OutputOption = None,
) -> None:
    """Show captured KMIP messages, binary or hexadecimal, as a tree; or make a message from one.

    Example: garant inspect kmip capture.hex
    """
    from keyprovider.errors import TtlvError
    from keyprovider.kmip.describe import describe, encode_description

    content = _read(file)
    try:
        if encode:
            sys.stdout.buffer.write(encode_description(content.decode()))
        elif output is OutputFormat.JSON:
            print_json({"lines": describe(content, show_secrets=show_secrets).splitlines()})
        else:
            sys.stdout.write(describe(content, show_secrets=show_secrets))
    except (TtlvError, UnicodeDecodeError) as exc:
        raise BadInput(f"{file} is not {'such a tree' if encode else 'KMIP'}: {exc}") from exc


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise BadInput(f"cannot read {file}: {exc.strerror}") from exc
    if len(content) > _MAX_FILE_BYTES:
        raise BadInput(f"{file} is larger than {_MAX_FILE_BYTES:,} bytes")
    return content


def _text(file: Path) -> str:
    try:
        text = _read(file).decode("ascii").strip()
    except UnicodeDecodeError as exc:
        raise BadInput(f"{file} is not a token") from exc
    if text.count(".") != 2 or len(text) > _MAX_TOKEN_CHARACTERS:
        raise BadInput(f"{file} is not a token: expected three parts with dots between them")
    return text


def _part(file: Path, text: str, position: int) -> dict[str, Any]:
    part = text.split(".")[position]
    try:
        value = json.loads(base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{file} is not a token: part {position + 1} is not JSON") from exc
    if not isinstance(value, dict):
        raise BadInput(f"{file} is not a token: part {position + 1} is not an object")
    return value


def _time(value: object) -> str:
    if not isinstance(value, int | float):
        return str(value)
    try:
        return datetime.datetime.fromtimestamp(value, datetime.UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return str(value)


def _cell(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
