"""``garant trust host``: hosts at the attestation service."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.output import OutputFormat, plain, print_record, print_table
from cli.session import Session, command

if TYPE_CHECKING:
    from cli.connection import Connection
    from garant.attestation.v1.admin_pb2_grpc import AttestationAdminServiceStub

app = typer.Typer(no_args_is_help=True)

HostArgument = Annotated[
    str, typer.Argument(metavar="HOST", help="Host id, the first 8 or more digits of it, or the host's name.")
]


class State(StrEnum):
    """Where a host stands with the trust authority."""

    REQUESTED = "requested"
    APPROVED = "approved"
    ACTIVE = "active"
    BANNED = "banned"
    REPLACED = "replaced"


@command(app, "list")
def list_hosts(
    session: Session,
    state: Annotated[State | None, typer.Option(help="Only hosts in this state.")] = None,
) -> None:
    """List enrolled hosts.

    Example: garant trust host list --state requested
    """
    from garant.attestation.v1.admin_pb2 import ListHostsRequest
    from garant.attestation.v1.attestation_pb2 import AdmissionState

    wanted = AdmissionState.Value(f"ADMISSION_STATE_{'UNSPECIFIED' if state is None else state.name}")
    attestation = session.site().attestation()
    hosts, token = [], ""
    while True:
        request = ListHostsRequest(page_size=1_000, page_token=token, state=wanted)
        page = attestation.call(attestation.stub.ListHosts, request)
        hosts += [plain(host) for host in page.hosts]
        token = page.next_page_token
        if not token:
            break
    session.show_list(hosts, ("name", "state", "cluster", "anchor", "enrolled_at", "host_id"), empty="no hosts")


@command(app, "show")
def show(session: Session, host: HostArgument) -> None:
    """Show a host and each check of its last appraisal.

    A failed check says what was expected, what was seen, and in which event.

    Example: garant trust host show kvm1
    """
    from garant.attestation.v1.admin_pb2 import GetHostRequest

    attestation = session.site().attestation()
    found = attestation.call(attestation.stub.GetHost, GetHostRequest(host=host)).host
    record = plain(found)
    if session.output is OutputFormat.JSON:
        session.show(record)
        return
    print_record(record)
    if not found.HasField("last_appraisal"):
        typer.echo("\nnever appraised")
        return
    typer.echo("\nlast appraisal")
    print_record(plain(found.last_appraisal))
    typer.echo()
    checks = [plain(check) for check in found.last_appraisal.checks]
    print_table(("rule", "passed", "expected", "seen", "event"), checks, empty="no checks")


@command(app, "approve")
def approve(
    session: Session,
    host: HostArgument,
    cluster: Annotated[str, typer.Option(help="Cluster to admit it to.")] = "default",
) -> None:
    """Admit a host that enrolled without a join token.

    Example: garant trust host approve kvm3 --cluster default
    """
    from garant.attestation.v1.admin_pb2 import ApproveHostRequest

    attestation = session.site().attestation()
    request = ApproveHostRequest(host_id=_host_id(attestation, host), cluster=cluster)
    admitted = attestation.call(attestation.stub.ApproveHost, request).host
    session.done(
        f"host {admitted.name} ({admitted.host_id}) is admitted to cluster {admitted.cluster}", plain(admitted)
    )


@command(app, "ban")
def ban(
    session: Session,
    host: HostArgument,
    reason: Annotated[str, typer.Option(help="Why, for the record.")],
) -> None:
    """Expel a host; its tokens end at once.

    Example: garant trust host ban kvm3 --reason "stolen"
    """
    from garant.attestation.v1.admin_pb2 import BanHostRequest

    attestation = session.site().attestation()
    request = BanHostRequest(host_id=_host_id(attestation, host), reason=reason)
    banned = attestation.call(attestation.stub.BanHost, request).host
    session.done(f"host {banned.name} ({banned.host_id}) is banned", plain(banned))


def _host_id(attestation: "Connection[AttestationAdminServiceStub]", host: str) -> str:
    """The full id of the host that was named; what is decided about it names it in full."""
    from garant.attestation.v1.admin_pb2 import GetHostRequest

    return attestation.call(attestation.stub.GetHost, GetHostRequest(host=host)).host.host_id
