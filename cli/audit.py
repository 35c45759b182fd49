"""``garant audit``: export the release log, and check an export against its witnesses, offline.

Exit codes of ``verify``: 0 the log is what every witness saw; 1 it is not (each finding in a line); 2 it could not be
checked (a file is missing or something else).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.errors import EXIT_REFUSED, BadInput
from cli.output import OutputFormat, Plain, print_json
from cli.session import Session, command

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from cli.connection import Connection
    from garant.keyprovider.v1.keyprovider_pb2_grpc import KeyProviderAdminServiceStub
    from keyprovider.trusted.audit import AuditReport, WitnessHead

app = typer.Typer(no_args_is_help=True)
SITE_LOG_KEY = Path("trust-authority/keyprovider/log-key.pub.pem")
"""Where a site's directory has the public log key."""
_PAGE_SIZE = 1_000
_MAX_LINE_BYTES = 64 * 1024
_MAX_WITNESS_BYTES = 64 * 1024 * 1024

LogKeyOption = Annotated[
    list[Path] | None,
    typer.Option("--log-key", metavar="FILE", help="Public log key, PEM; repeatable (default: the site's)."),
]


@app.callback()
def _group() -> None:
    """Check the release log: export it, compare it with what hosts saw of it."""


@command(app, "export")
def export(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="LOGFILE", help="File to write; must not exist.")],
) -> None:
    """Write the release log and its signed head to a file, as a trust administrator.

    Collect the witnesses' files first: what they saw must be in the export.

    Example: garant audit export releases.log
    """
    from garant.keyprovider.v1.keyprovider_pb2 import GetTreeHeadRequest
    from keyprovider.trusted.audit import encode_export

    keyprovider = session.site().keyprovider()
    head = keyprovider.call(keyprovider.stub.GetTreeHead, GetTreeHeadRequest())
    try:
        with file.open("xb") as opened:
            file.chmod(0o600)
            try:
                opened.writelines(encode_export(head.tree_head, _entries(keyprovider, head.size)))
            except BaseException:
                file.unlink()
                raise
    except FileExistsError as exc:
        raise BadInput(f"{file} exists; name another file") from exc
    except OSError as exc:
        raise BadInput(f"cannot write {file}: {exc.strerror}") from exc
    done = f"{head.size} releases are in {file}; check them with `garant audit verify`"
    session.done(done, {"entries": head.size})


@command(app, "verify")
def verify(
    session: Session,
    file: Annotated[Path, typer.Argument(metavar="LOGFILE", help="What `garant audit export` wrote.")],
    witness: Annotated[
        list[Path] | None,
        typer.Option("--witness", metavar="FILE", help="Tree heads that a host kept, one in a line; repeatable."),
    ] = None,
    log_key: LogKeyOption = None,
) -> None:
    """Check an exported release log against its witnesses: any change, removal, reordering or fork is found. Offline.

    Example: garant audit verify --witness kvm1.heads --witness kvm2.heads releases.log
    """
    from keyprovider.trusted.audit import audit
    from keyprovider.trusted.errors import ExportMalformed

    keys = _log_keys(log_key or [session.directory / SITE_LOG_KEY])
    heads = [head for path in witness or () for head in _witness_heads(path)]
    try:
        report = audit(_lines(file), heads, keys=keys)
    except ExportMalformed as exc:
        raise BadInput(f"{file}: {exc}") from exc
    if not heads:
        typer.echo("garant: no witness was named: a log that was written anew would not be noticed", err=True)
    _show(session, report)
    if report.findings:
        raise typer.Exit(EXIT_REFUSED)


def _show(session: Session, report: "AuditReport") -> None:
    findings: list[dict[str, Plain]] = [
        {"kind": finding.kind.value, "source": finding.source, "message": finding.message}
        for finding in report.findings
    ]
    if session.output is OutputFormat.JSON:
        print_json(
            {
                "intact": not findings,
                "entries": report.entries,
                "heads": report.heads,
                "intact_entries": report.intact_entries,
                "findings": findings,
            }
        )
        return
    if not findings:
        typer.echo(f"the log is intact: {report.entries} entries, as {report.heads} signed heads say")
        return
    session.show_list(findings, ("kind", "source", "message"), empty="")
    typer.echo(f"the log is NOT intact; of {report.entries} entries the first {report.intact_entries} are as signed")


def _entries(keyprovider: "Connection[KeyProviderAdminServiceStub]", size: int) -> Iterator[bytes]:
    """The first ``size`` entries of the log; more may have come since the head was signed."""
    from garant.keyprovider.v1.keyprovider_pb2 import ListReleasesRequest

    index = 0
    while index < size:
        request = ListReleasesRequest(start_index=index, page_size=min(_PAGE_SIZE, size - index))
        page = keyprovider.call(keyprovider.stub.ListReleases, request).releases
        if not page:
            # Written as it is: what is missing is for `verify` to find.
            return
        yield from (release.entry for release in page)
        index += len(page)


def _witness_heads(path: Path) -> "list[WitnessHead]":
    from keyprovider.trusted.audit import WitnessHead

    try:
        with path.open("rb") as opened:
            content = opened.read(_MAX_WITNESS_BYTES + 1)
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}") from exc
    try:
        texts = content.decode("ascii").split()
    except UnicodeDecodeError as exc:
        raise BadInput(f"{path} is not a list of tree heads") from exc
    if len(content) > _MAX_WITNESS_BYTES or not texts or any(text.count(".") != 2 for text in texts):
        raise BadInput(f"{path} is not a list of tree heads: expected one signed head in a line")
    return [WitnessHead(f"{path}, line {number}", text) for number, text in enumerate(texts, 1)]


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as opened:
            while line := opened.readline(_MAX_LINE_BYTES):
                yield line
    except OSError as exc:
        raise BadInput(f"cannot read {path}: {exc.strerror}") from exc


def _log_keys(paths: list[Path]) -> "dict[str, ec.EllipticCurvePublicKey]":
    from keyprovider.trusted.config import load_token_keys
    from serving.errors import ConfigError

    try:
        return load_token_keys(paths)
    except ConfigError as exc:
        raise BadInput(f"{exc}; name the public log key with --log-key") from exc
