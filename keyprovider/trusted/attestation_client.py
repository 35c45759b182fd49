"""Asks the attestation service for its heartbeat. Serves the port ``HeartbeatFetcher``."""

from typing import Final

from garant.attestation.v1 import admin_pb2, admin_pb2_grpc
from serving.client import ClientTls, call, open_channel

_TIMEOUT_SECONDS: Final = 5.0


class AttestationClient:
    """A channel to the attestation service's administrative port."""

    def __init__(self, address: str, tls: ClientTls) -> None:
        """Connect with the first call."""
        self._channel = open_channel(address, tls)
        self._revocation = admin_pb2_grpc.RevocationServiceStub(self._channel)

    def fetch(self) -> str:
        """See ``HeartbeatFetcher.fetch``."""
        answer = call(self._revocation.GetHeartbeat, admin_pb2.GetHeartbeatRequest(), timeout_seconds=_TIMEOUT_SECONDS)
        return answer.heartbeat

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
