"""``garant trust anchor``, ``policy`` and ``reference``: what evidence is held against."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import BadInput
from cli.output import OutputFormat, plain
from cli.session import Session, command

anchor = typer.Typer(no_args_is_help=True)
policy = typer.Typer(no_args_is_help=True)
reference = typer.Typer(no_args_is_help=True)

_MAX_FILE_BYTES = 4 * 1024 * 1024
_REFERENCE_COLUMNS = ("name", "active", "event_count", "command_line")
NameArgument = Annotated[str, typer.Argument(help="Name of the reference.")]


@command(anchor, "add")
def add_anchor(
    session: Session,
    name: Annotated[str, typer.Argument(help="Unique name.")],
    certificate: Annotated[Path, typer.Argument(metavar="FILE", help="CA certificate, PEM.")],
    allow_virtual: Annotated[
        bool, typer.Option("--allow-virtual", help="Admit software TPMs: their root is the machine that runs them.")
    ] = False,
) -> None:
    """Trust the endorsement keys that a CA certified.

    Example: garant trust anchor add infineon OptigaRsaRootCA.pem
    """
    from garant.attestation.v1.admin_pb2 import AddAnchorRequest, Anchor

    try:
        pem = read_file(certificate).decode("ascii")
    except UnicodeDecodeError as exc:
        raise BadInput(f"{certificate} is not a PEM file") from exc
    attestation = session.site().attestation()
    request = AddAnchorRequest(anchor=Anchor(name=name, certificate_pem=pem, allow_virtual=allow_virtual))
    attestation.call(attestation.stub.AddAnchor, request)
    session.done(f"anchor {name} is added", {"name": name, "allow_virtual": allow_virtual})


@command(anchor, "list")
def list_anchors(session: Session) -> None:
    """List the anchors.

    Example: garant trust anchor list
    """
    from garant.attestation.v1.admin_pb2 import ListAnchorsRequest

    attestation = session.site().attestation()
    anchors = attestation.call(attestation.stub.ListAnchors, ListAnchorsRequest()).anchors
    session.show_list([plain(found) for found in anchors], ("name", "allow_virtual"), empty="no anchors")


@command(policy, "put")
def put_policy(
    session: Session,
    document: Annotated[Path, typer.Argument(metavar="FILE", help="Policy document, JSON.")],
) -> None:
    """Put an appraisal policy in force; its version must be greater than that in force.

    Example: garant trust policy put policy.json
    """
    from garant.attestation.v1.admin_pb2 import PutPolicyRequest

    try:
        text = read_file(document).decode()
    except UnicodeDecodeError as exc:
        raise BadInput(f"{document} is not JSON") from exc
    attestation = session.site().attestation()
    answer = attestation.call(attestation.stub.PutPolicy, PutPolicyRequest(document=text))
    session.done(f"policy version {answer.version} is in force", plain(answer))


@command(policy, "show")
def show_policy(session: Session) -> None:
    """Show the appraisal policy in force.

    Example: garant trust policy show > policy.json
    """
    from garant.attestation.v1.admin_pb2 import GetPolicyRequest

    attestation = session.site().attestation()
    answer = attestation.call(attestation.stub.GetPolicy, GetPolicyRequest())
    if session.output is OutputFormat.JSON:
        session.show({"document": json.loads(answer.document), "hash": answer.hash.hex()})
    else:
        typer.echo(json.dumps(json.loads(answer.document), indent=2))


@command(reference, "put")
def put_reference(
    session: Session,
    name: NameArgument,
    event_log: Annotated[Path, typer.Argument(metavar="FILE", help="TCG event log of a boot to trust.")],
) -> None:
    """Trust a boot, as its event log tells it.

    Example: garant trust reference put debian-12.8 binary_bios_measurements
    """
    content = read_file(event_log)
    if not content:
        raise BadInput(f"{event_log} is empty")
    _put_reference(session, name, content, "is in force")


@command(reference, "restore")
def restore_reference(session: Session, name: NameArgument) -> None:
    """Bring a withdrawn reference back.

    Example: garant trust reference restore debian-12.8
    """
    _put_reference(session, name, b"", "is in force again")


@command(reference, "withdraw")
def withdraw_reference(session: Session, name: NameArgument) -> None:
    """Trust a boot no longer; tokens given under it end at once.

    Example: garant trust reference withdraw debian-12.7
    """
    from garant.attestation.v1.admin_pb2 import WithdrawReferenceRequest

    attestation = session.site().attestation()
    answer = attestation.call(attestation.stub.WithdrawReference, WithdrawReferenceRequest(name=name))
    session.done(f"reference {name} is withdrawn", plain(answer.reference))


@command(reference, "list")
def list_references(session: Session) -> None:
    """List the reference boots.

    Example: garant trust reference list
    """
    from garant.attestation.v1.admin_pb2 import ListReferencesRequest

    attestation = session.site().attestation()
    references = attestation.call(attestation.stub.ListReferences, ListReferencesRequest()).references
    session.show_list([plain(found) for found in references], _REFERENCE_COLUMNS, empty="no references")


def _put_reference(session: Session, name: str, event_log: bytes, outcome: str) -> None:
    from garant.attestation.v1.admin_pb2 import PutReferenceRequest

    attestation = session.site().attestation()
    request = PutReferenceRequest(name=name, event_log=event_log)
    answer = attestation.call(attestation.stub.PutReference, request)
    session.done(f"reference {name} {outcome}", plain(answer.reference))


def read_file(path: Path) -> bytes:
    """Read a file that an argument names.

    Raises:
        BadInput: It cannot be read, or has more than 4 MiB.
    """
    try:
        with path.open("rb") as opened:
            content = opened.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}") from exc
    if len(content) > _MAX_FILE_BYTES:
        raise BadInput(f"{path} is larger than {_MAX_FILE_BYTES:,} bytes")
    return content
