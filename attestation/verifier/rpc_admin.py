"""The admin port, mutually authenticated: administration by trust administrators, and the heartbeat.

``METHODS`` is the whole of who may call what.
"""

# ruff: noqa: ARG002, N802 - names and signatures are gRPC's

from collections.abc import Mapping

import grpc
import structlog

from attestation.errors import MalformedRequest
from attestation.verifier.administration import Administration, ReferenceSummary
from attestation.verifier.model import AppraisalRecord, HostRecord
from attestation.verifier.rpc_messages import ADMISSION_STATES, timestamp
from garant.attestation.v1 import admin_pb2 as pb
from garant.attestation.v1 import admin_pb2_grpc as rpc
from garant.attestation.v1 import attestation_pb2
from serving.authorization import current_caller
from serving.identity import Role
from serving.server import Service

_ADMIN = "garant.attestation.v1.AttestationAdminService"
_REVOCATION = "garant.attestation.v1.RevocationService"
_TRUST_ADMIN = frozenset({Role.TRUST_ADMIN})
METHODS: Mapping[str, frozenset[Role]] = {
    f"/{_ADMIN}/AddAnchor": _TRUST_ADMIN,
    f"/{_ADMIN}/ListAnchors": _TRUST_ADMIN,
    f"/{_ADMIN}/ListHosts": _TRUST_ADMIN,
    f"/{_ADMIN}/GetHost": _TRUST_ADMIN,
    f"/{_ADMIN}/ApproveHost": _TRUST_ADMIN,
    f"/{_ADMIN}/BanHost": _TRUST_ADMIN,
    f"/{_ADMIN}/PutPolicy": _TRUST_ADMIN,
    f"/{_ADMIN}/GetPolicy": _TRUST_ADMIN,
    f"/{_ADMIN}/PutReference": _TRUST_ADMIN,
    f"/{_ADMIN}/WithdrawReference": _TRUST_ADMIN,
    f"/{_ADMIN}/ListReferences": _TRUST_ADMIN,
    f"/{_REVOCATION}/GetHeartbeat": frozenset({Role.TRUST_ADMIN, Role.KEY_PROVIDER_SERVICE, Role.ATTESTED_HOST}),
}

_log = structlog.get_logger(__name__)


def admin_services(administration: Administration) -> tuple[Service, ...]:
    """What the admin port serves."""
    admin, revocation = _Admin(administration), _Revocation(administration)
    return (
        Service(_ADMIN, lambda server: rpc.add_AttestationAdminServiceServicer_to_server(admin, server)),
        Service(_REVOCATION, lambda server: rpc.add_RevocationServiceServicer_to_server(revocation, server)),
    )


class _Admin(rpc.AttestationAdminServiceServicer):
    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    def AddAnchor(self, request: pb.AddAnchorRequest, context: grpc.ServicerContext) -> pb.AddAnchorResponse:
        """Add an anchor."""
        anchor = request.anchor
        self._administration.add_anchor(anchor.name, anchor.certificate_pem, allow_virtual=anchor.allow_virtual)
        _changed("anchor added", anchor=anchor.name, allow_virtual=anchor.allow_virtual)
        return pb.AddAnchorResponse()

    def ListAnchors(self, request: pb.ListAnchorsRequest, context: grpc.ServicerContext) -> pb.ListAnchorsResponse:
        """List anchors."""
        return pb.ListAnchorsResponse(
            anchors=[
                pb.Anchor(name=anchor.name, certificate_pem=anchor.certificate_pem, allow_virtual=anchor.allow_virtual)
                for anchor in self._administration.anchors()
            ]
        )

    def ListHosts(self, request: pb.ListHostsRequest, context: grpc.ServicerContext) -> pb.ListHostsResponse:
        """List hosts."""
        states = {number: state for state, number in ADMISSION_STATES.items()}
        state = states.get(request.state)
        if state is None and request.state != attestation_pb2.ADMISSION_STATE_UNSPECIFIED:
            raise MalformedRequest("state is not one that is known")
        hosts, next_page_token = self._administration.hosts(
            page_size=request.page_size, page_token=request.page_token, state=state
        )
        return pb.ListHostsResponse(hosts=[_host(host) for host in hosts], next_page_token=next_page_token)

    def GetHost(self, request: pb.GetHostRequest, context: grpc.ServicerContext) -> pb.GetHostResponse:
        """Show a host."""
        return pb.GetHostResponse(host=_host(*self._administration.host(request.host)))

    def ApproveHost(self, request: pb.ApproveHostRequest, context: grpc.ServicerContext) -> pb.ApproveHostResponse:
        """Admit a host."""
        host = self._administration.approve_host(request.host_id, request.cluster)
        _changed("host approved", host_id=host.host_id.text, host_name=host.name, cluster=host.cluster)
        return pb.ApproveHostResponse(host=_host(host))

    def BanHost(self, request: pb.BanHostRequest, context: grpc.ServicerContext) -> pb.BanHostResponse:
        """Expel a host."""
        host = self._administration.ban_host(request.host_id, request.reason)
        _changed("host banned", host_id=host.host_id.text, host_name=host.name, reason=request.reason)
        return pb.BanHostResponse(host=_host(host))

    def PutPolicy(self, request: pb.PutPolicyRequest, context: grpc.ServicerContext) -> pb.PutPolicyResponse:
        """Put the policy."""
        policy = self._administration.put_policy(request.document)
        _changed("policy put", version=policy.version, sha256=policy.digest.hex())
        return pb.PutPolicyResponse(version=policy.version, hash=policy.digest)

    def GetPolicy(self, request: pb.GetPolicyRequest, context: grpc.ServicerContext) -> pb.GetPolicyResponse:
        """Show the policy."""
        policy = self._administration.policy()
        return pb.GetPolicyResponse(document=policy.document, hash=policy.digest)

    def PutReference(self, request: pb.PutReferenceRequest, context: grpc.ServicerContext) -> pb.PutReferenceResponse:
        """Add a reference, or bring it back."""
        reference = self._administration.put_reference(
            request.name, request.event_log, command_line=request.command_line
        )
        _changed("reference put", reference=reference.name, events=reference.event_count)
        return pb.PutReferenceResponse(reference=_reference(reference))

    def WithdrawReference(
        self, request: pb.WithdrawReferenceRequest, context: grpc.ServicerContext
    ) -> pb.WithdrawReferenceResponse:
        """Withdraw a reference."""
        reference = self._administration.withdraw_reference(request.name)
        _changed("reference withdrawn", reference=reference.name)
        return pb.WithdrawReferenceResponse(reference=_reference(reference))

    def ListReferences(
        self, request: pb.ListReferencesRequest, context: grpc.ServicerContext
    ) -> pb.ListReferencesResponse:
        """List references."""
        references = [_reference(reference) for reference in self._administration.references()]
        return pb.ListReferencesResponse(references=references)


class _Revocation(rpc.RevocationServiceServicer):
    def __init__(self, administration: Administration) -> None:
        self._administration = administration

    def GetHeartbeat(self, request: pb.GetHeartbeatRequest, context: grpc.ServicerContext) -> pb.GetHeartbeatResponse:
        """Give the newest heartbeat."""
        return pb.GetHeartbeatResponse(heartbeat=self._administration.heartbeat())


def _changed(event: str, **fields: object) -> None:
    """Log what was changed, and by whom."""
    _log.info(event, caller=str(current_caller().identity), **fields)


def _host(host: HostRecord, appraisal: AppraisalRecord | None = None) -> pb.Host:
    return pb.Host(
        host_id=host.host_id.text,
        name=host.name,
        state=ADMISSION_STATES[host.state],
        cluster=host.cluster,
        anchor=host.anchor,
        enrolled_at=timestamp(host.enrolled_at),
        last_appraisal=None if appraisal is None else _appraisal(appraisal),
    )


def _appraisal(appraisal: AppraisalRecord) -> pb.Appraisal:
    return pb.Appraisal(
        appraised_at=timestamp(appraisal.appraised_at),
        trusted=appraisal.trusted,
        reason=appraisal.reason,
        checks=[
            pb.AppraisalCheck(
                rule=check.rule,
                title=check.title,
                passed=check.passed,
                expected=check.expected,
                seen=check.seen,
                event=check.event,
            )
            for check in appraisal.checks
        ],
        reference=appraisal.reference,
        policy_version=appraisal.policy_version,
        reset_count=0 if appraisal.boot is None else appraisal.boot.reset_count,
        restart_count=0 if appraisal.boot is None else appraisal.boot.restart_count,
    )


def _reference(reference: ReferenceSummary) -> pb.Reference:
    return pb.Reference(
        name=reference.name,
        active=reference.active,
        event_count=reference.event_count,
        command_line=reference.command_line,
    )
