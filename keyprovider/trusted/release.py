"""THE decision of the trusted key provider: whether a host gets the key it asks for.

Two parties must agree (B-19): the trust authority, by the host's attestation token, and the management server, by its
placement grant. Token, grant and heartbeat come in types that only their signature checks construct; what is decided
here is whether they belong together, to this caller, to this request, and to now.

The rules, in the order they are checked; each has a reason of its own (``keyprovider.errors.ReleaseReason``):

1. The TLS peer is an attested host.
2. Its certificate names the host that the token names.
3. Its TLS key is the one the token is bound to (``cnf.jkt``): a stolen token is of no use.
4. The token has not expired: it was verified once, a while ago maybe.
5. There is a revocation heartbeat,
6. and it is fresh enough: cut off from the attestation service, we stop giving out keys.
7. The token is of the present epoch.
8. The host is not revoked.
9. The token's policy is not older than the one in force, nor than the least we accept.
10. The grant has not expired.
11. The grant is for this host,
12. and for this VM.
13. The provider exists,
14. admits the host's cluster,
15. and this host.
16. Keys may be sealed with the host's mechanism.
17. The token's policy is not older than the least that the provider accepts.

Pure: everything is passed in. No clock, randomness, I/O or logging.
"""

from dataclasses import dataclass
from typing import NoReturn

from attestation.token import VerifiedHeartbeat, VerifiedToken
from keyprovider.errors import ReleaseReason, ReleaseRefused
from keyprovider.grant import VerifiedGrant
from keyprovider.trusted.model import KeyRequest, Peer, Provider

ATTESTED_HOST = "attested-host"
"""The one role that keys are released to."""


@dataclass(frozen=True, slots=True)
class ReleaseRules:
    """What the trust administrator of this service demands beyond the fixed rules."""

    max_staleness_seconds: int
    """How old the newest heartbeat may be."""
    minimum_policy_version: int = 0


@dataclass(frozen=True, slots=True)
class Approved:
    """A release that passed every rule; made by :func:`decide` alone, and the only thing that a key is sealed for."""

    request: KeyRequest
    token: VerifiedToken
    grant: VerifiedGrant
    provider: Provider
    decided_at: int
    """Seconds since the epoch."""


def decide(
    request: KeyRequest,
    *,
    peer: Peer,
    token: VerifiedToken,
    grant: VerifiedGrant,
    heartbeat: VerifiedHeartbeat | None,
    provider: Provider | None,
    rules: ReleaseRules,
    now: int,
) -> Approved:
    """Decide on one request.

    Args:
        request: What is asked for.
        peer: Whom TLS proved.
        token: The host's token, verified.
        grant: The management server's grant, verified.
        heartbeat: The newest heartbeat, verified when it came.
        provider: The provider that the request names, if it exists.
        rules: This service's own demands.
        now: Seconds since the epoch.

    Raises:
        ReleaseRefused: With the reason of the first rule that fails.
    """
    _check_host(peer, token, now)
    _check_revocation(token, heartbeat, rules, now)
    _check_grant(request, token, grant, now)
    return Approved(request, token, grant, _check_provider(request, token, provider), now)


def _check_host(peer: Peer, token: VerifiedToken, now: int) -> None:
    # 1
    if peer.role != ATTESTED_HOST:
        _refuse(ReleaseReason.CALLER_NOT_A_HOST, f"keys are given to attested hosts, not to {peer.role}")
    # 2
    if peer.name != token.host_id.text:
        _refuse(
            ReleaseReason.CERTIFICATE_OF_OTHER_HOST, f"the token is of {token.host_id}, the caller is {peer.name[:64]}"
        )
    # 3
    if peer.tls_thumbprint != token.tls_thumbprint:
        _refuse(ReleaseReason.TOKEN_OF_OTHER_KEY, "the token is bound to another TLS key than the caller's")
    # 4
    if now >= token.expires_at:
        _refuse(ReleaseReason.TOKEN_EXPIRED, f"the token expired {now - token.expires_at} s ago; attest again")


def _check_revocation(token: VerifiedToken, heartbeat: VerifiedHeartbeat | None, rules: ReleaseRules, now: int) -> None:
    # 5
    if heartbeat is None:
        _refuse(ReleaseReason.NO_HEARTBEAT, "no heartbeat of the attestation service was seen yet")
    # 6: by its age alone. Its own expiry bounds delivery; it was checked when it came.
    age = now - heartbeat.issued_at
    if age > rules.max_staleness_seconds:
        _refuse(
            ReleaseReason.HEARTBEAT_STALE,
            f"the newest heartbeat of the attestation service is {age} s old; at most {rules.max_staleness_seconds}",
        )
    # 7
    if token.epoch < heartbeat.epoch:
        _refuse(
            ReleaseReason.TOKEN_OF_OLDER_EPOCH,
            f"the token is of epoch {token.epoch}, the present one is {heartbeat.epoch}; attest again",
        )
    # 8
    if token.host_id in heartbeat.revoked:
        _refuse(ReleaseReason.HOST_REVOKED, f"host {token.host_id} was revoked")
    # 9
    least = max(rules.minimum_policy_version, heartbeat.policy_version)
    if token.policy_version < least:
        _refuse(
            ReleaseReason.POLICY_TOO_OLD,
            f"the host was appraised under policy {token.policy_version}; {least} is demanded; attest again",
        )


def _check_grant(request: KeyRequest, token: VerifiedToken, grant: VerifiedGrant, now: int) -> None:
    # 10
    if now >= grant.expires_at:
        _refuse(ReleaseReason.GRANT_EXPIRED, f"the placement grant expired {now - grant.expires_at} s ago")
    # 11
    if grant.host_id != token.host_id:
        _refuse(
            ReleaseReason.GRANT_FOR_OTHER_HOST,
            f"the placement grant is for host {grant.host_id}, the caller is {token.host_id}",
        )
    # 12
    if grant.vm_id != request.vm_id:
        _refuse(
            ReleaseReason.GRANT_FOR_OTHER_VM,
            f"the placement grant is for VM {grant.vm_id}, the request is for VM {request.vm_id}",
        )


def _check_provider(request: KeyRequest, token: VerifiedToken, provider: Provider | None) -> Provider:
    # 13
    if provider is None or provider.name != request.provider:
        _refuse(ReleaseReason.PROVIDER_UNKNOWN, f"there is no trusted key provider {request.provider!r}")
    policy = provider.policy
    # 14
    if policy.clusters is not None and token.cluster not in policy.clusters:
        _refuse(
            ReleaseReason.CLUSTER_NOT_ADMITTED, f"provider {provider.name} does not admit cluster {token.cluster!r}"
        )
    # 15
    if policy.hosts is not None and token.host_id not in policy.hosts:
        _refuse(ReleaseReason.HOST_NOT_ADMITTED, f"provider {provider.name} does not admit host {token.host_id}")
    # 16
    if token.hpke_kem not in policy.kems:
        allowed = ", ".join(sorted(kem.name for kem in policy.kems)) or "none"
        _refuse(
            ReleaseReason.KEM_NOT_ALLOWED,
            f"provider {provider.name} seals with {allowed}; the host's key is for {token.hpke_kem.name}",
        )
    # 17
    if token.policy_version < policy.minimum_policy_version:
        _refuse(
            ReleaseReason.POLICY_TOO_OLD,
            f"the host was appraised under policy {token.policy_version}; provider {provider.name} demands"
            f" {policy.minimum_policy_version}; attest again",
        )
    return provider


def _refuse(reason: ReleaseReason, message: str) -> NoReturn:
    raise ReleaseRefused(reason, message)
