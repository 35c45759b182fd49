"""Bounds of the public and the admin port: too large, too many or no name, and nothing is done."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from garant.attestation.v1 import admin_pb2, attestation_pb2_grpc
from garant.attestation.v1 import attestation_pb2 as pb
from serving.authority import certificate_pem
from serving.client import call
from serving.errors import RemoteError
from tests.attack_site import AttackSite, attack_site
from tests.software_tpm import make_test_ek_ca


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackSite]:
    """Run one service for all tests of a worker: none of them changes anything."""
    with attack_site(tmp_path_factory.mktemp("bounds")) as running:
        yield running


CLAIMS = {
    "ek_public": pb.BeginEnrollmentRequest(ek_public=bytes(1025)),
    "ak_public": pb.BeginEnrollmentRequest(ak_public=bytes(1025)),
    "a certificate": pb.BeginEnrollmentRequest(ek_certificate=bytes(8 * 1024 + 1)),
    "join_token": pb.BeginEnrollmentRequest(join_token="x" * (16 * 1024 + 1)),
}


@pytest.mark.parametrize("what", [*CLAIMS, "an intermediate", "intermediates", "cluster"])
def test_an_oversized_claim_is_refused(site: AttackSite, what: str) -> None:
    """Each part of a claim has a bound of its own, and the refusal says which (T15)."""

    def edit(claim: pb.BeginEnrollmentRequest) -> None:
        if what == "an intermediate":
            claim.ek_intermediates.append(bytes(8 * 1024 + 1))
        elif what == "intermediates":
            claim.ek_intermediates.extend([b"x"] * 9)
        elif what == "cluster":
            claim.join_token = site.service.site.join_token(claim.host_name, cluster="no such name")
        else:
            claim.MergeFrom(CLAIMS[what])

    with pytest.raises(RemoteError) as caught:
        site.client.enroll(replace(site.host(), edit_claim=edit))
    expected = {
        "an intermediate": "a certificate has 8193 bytes; at most 8192 are read",
        "intermediates": "at most 8 intermediate certificates",
        "cluster": "the join token names no cluster",
    }.get(what, f"{what} has ")
    assert expected in caught.value.message
    assert caught.value.reason == ("JOIN_TOKEN_INVALID" if what == "cluster" else "MALFORMED_REQUEST")


EVIDENCE = {
    "quote": pb.AttestRequest(quote=bytes(1025)),
    "signature": pb.AttestRequest(signature=bytes(1025)),
    "tls_public_key": pb.AttestRequest(tls_public_key=bytes(1025)),
    "hpke_public_key": pb.AttestRequest(hpke_public_key=bytes(2049)),
    "command_line": pb.AttestRequest(command_line="x" * 4097),
    "a PCR value": pb.AttestRequest(pcr_values=[pb.PcrValue(index=23, digest=bytes(65))]),
    "a log": pb.AttestRequest(logs=[pb.MeasurementLog(kind=pb.LOG_KIND_IMA, content=bytes(4 * 1024 * 1024 + 1))]),
    "PCR values are": pb.AttestRequest(pcr_values=[pb.PcrValue(index=24)]),
    "each log is": pb.AttestRequest(logs=[pb.MeasurementLog(kind=pb.LOG_KIND_TCG)]),
    "each log is of a known kind": pb.AttestRequest(logs=[pb.MeasurementLog()]),
}


@pytest.mark.parametrize("what", EVIDENCE)
def test_oversized_evidence_costs_nothing(site: AttackSite, what: str) -> None:
    """Each part of the evidence has a bound of its own; beyond it, the challenge is not even spent (T15)."""
    host = site.host()
    site.client.enroll(host)
    sent: list[pb.AttestRequest] = []

    def edit(request: pb.AttestRequest) -> None:
        sent.append(pb.AttestRequest.FromString(request.SerializeToString()))
        request.MergeFrom(EVIDENCE[what])

    with pytest.raises(RemoteError) as caught:
        site.client.attest(replace(host, edit_evidence=edit))
    assert caught.value.reason == "MALFORMED_REQUEST"
    assert what in caught.value.message
    stub = attestation_pb2_grpc.AttestationServiceStub(site.service.channel(site.service.public_port, None))
    assert call(stub.Attest, sent[0]).token


@pytest.mark.parametrize("host_id", ["", "a" * 63, "A" * 64, "../" * 20])
def test_a_challenge_is_for_a_host_id(site: AttackSite, host_id: str) -> None:
    """What is not 64 digits gets no challenge."""
    stub = attestation_pb2_grpc.AttestationServiceStub(site.service.channel(site.service.public_port, None))
    with pytest.raises(RemoteError) as caught:
        call(stub.CreateChallenge, pb.CreateChallengeRequest(host_id=host_id))
    assert caught.value.reason == "MALFORMED_REQUEST"


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "../anchor", "ä"])
def test_names_are_names(site: AttackSite, name: str) -> None:
    """Anchors and references have names that can stand in a log, a path and a table."""
    admin = site.service.admin()
    pem = certificate_pem(make_test_ek_ca().certificate).decode()
    anchor = admin_pb2.Anchor(name=name, certificate_pem=pem)
    with pytest.raises(RemoteError) as caught:
        call(admin.AddAnchor, admin_pb2.AddAnchorRequest(anchor=anchor))
    assert caught.value.reason == "MALFORMED_REQUEST"
    with pytest.raises(RemoteError) as caught:
        call(admin.PutReference, admin_pb2.PutReferenceRequest(name=name, event_log=b"log"))
    assert caught.value.reason == "MALFORMED_REQUEST"
