"""The host agent's state directory, join identity and configuration."""

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.model import LogKind
from host_agent.config import AgentSettings
from host_agent.errors import EventLogUnreadable, JoinFailed, Peer, PeerUnreachable, StateDamaged
from host_agent.event_logs import MAX_LOG_BYTES, LogFiles
from host_agent.join import KEY, RECORD, Joiner
from host_agent.model import JoinClaim
from host_agent.state import StateDirectory, private_directory
from serving.authority import certificate_pem, private_key_pem
from serving.errors import ConfigError
from serving.identity import Identity, Role
from serving.join_token import JoinInvitation, make_join_token
from tests.host_agent_fakes import NOW, FakeState, make_authority

DAY = datetime.timedelta(days=1)


def test_state_is_private(tmp_path: Path) -> None:
    """Directory and files are readable by their owner only."""
    state = StateDirectory(tmp_path / "state")
    state.write("file", b"content")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state", tmp_path / "state" / "file")]
    assert modes == [0o700, 0o600]
    assert state.read("file") == b"content"
    state.close()


def test_write_replaces_the_whole_file(tmp_path: Path) -> None:
    """A write leaves the new content and no temporary file."""
    state = StateDirectory(tmp_path / "state")
    state.write("file", b"long content")
    state.write("file", b"short")
    assert state.read("file") == b"short"
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["file", "lock"]
    state.close()


def test_absent_file_is_none(tmp_path: Path) -> None:
    """What was never written is not an error."""
    state = StateDirectory(tmp_path / "state")
    assert state.read("file") is None
    state.close()


def test_second_agent_is_refused(tmp_path: Path) -> None:
    """Two agents never share a state directory; after the first has ended the second may."""
    first = StateDirectory(tmp_path / "state")
    with pytest.raises(ConfigError, match="another host agent"):
        StateDirectory(tmp_path / "state")
    first.close()
    StateDirectory(tmp_path / "state").close()


def test_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    """A directory that others may enter is refused, with the command that cures it."""
    (tmp_path / "state").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="chmod 700"):
        private_directory(tmp_path / "state")


def test_unreadable_state_is_told(tmp_path: Path) -> None:
    """A directory in a file's place, or a huge file, is an error that names the path."""
    state = StateDirectory(tmp_path / "state")
    (tmp_path / "state" / "file").mkdir()
    with pytest.raises(StateDamaged, match="file"):
        state.read("file")
    with pytest.raises(StateDamaged, match="file"):
        state.write("file", b"content")
    (tmp_path / "state" / "large").write_bytes(bytes(1024 * 1024 + 1))
    with pytest.raises(StateDamaged, match="large"):
        state.read("large")
    state.close()


class FakeManagement:
    """``JoinServer`` that signs whatever it is asked for."""

    def __init__(self) -> None:
        self.ca = make_authority("management")
        self.claims: list[JoinClaim] = []
        self.failure: Exception | None = None
        self.other_key: ec.EllipticCurvePublicKey | None = None

    def join(self, claim: JoinClaim) -> tuple[bytes, bytes]:
        """See the port."""
        if self.failure is not None:
            raise self.failure
        self.claims.append(claim)
        key = x509.load_der_x509_csr(claim.certificate_request).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        identity = Identity("site", Role.JOINED_HOST, "host-a")
        certificate = self.ca.issue(identity, self.other_key or key, now=NOW, lifetime=DAY)
        return certificate_pem(certificate), certificate_pem(self.ca.certificate)


def _joiner(management: FakeManagement, state: FakeState, *, address: str = "host:1", invited: bool = True) -> Joiner:
    invitation = JoinInvitation("id", "host-a", "default", 0, "management:1", b"ca")
    return Joiner(
        host_name="host-a",
        hardware_uuid="uuid",
        agent_address=address,
        state=state,
        invitation=lambda: ("token", invitation) if invited else None,
        connect=lambda _: management,
    )


def test_host_joins_once() -> None:
    """A join identity is kept with its key, and found again without a token."""
    management, state = FakeManagement(), FakeState()
    joined = _joiner(management, state).join("ab" * 32)
    assert _joiner(management, state, invited=False).known(NOW) == joined
    (claim,) = management.claims
    assert (claim.host_id, claim.agent_address, claim.hardware_uuid) == ("ab" * 32, "host:1", "uuid")


@pytest.mark.parametrize(("address", "after"), [("host:2", 0 * DAY), ("host:1", 2 * DAY)], ids=["moved", "expired"])
def test_identity_that_is_of_no_use_is_asked_for_again(address: str, after: datetime.timedelta) -> None:
    """A new address of the agent, or the certificate's end, makes the host join again with the same key."""
    management, state = FakeManagement(), FakeState()
    _joiner(management, state).join("")
    key = state.files[KEY]
    again = _joiner(management, state, address=address)
    assert again.known(NOW + after) is None
    assert again.join("").private_key_pem == state.files[KEY] == key


def test_key_is_kept_when_the_answer_is_lost() -> None:
    """A token may be shown again with the same key, so the key is kept from before the first try on."""
    management, state = FakeManagement(), FakeState()
    management.failure = PeerUnreachable(Peer.MANAGEMENT_SERVER, "away")
    with pytest.raises(PeerUnreachable):
        _joiner(management, state).join("")
    key = state.files[KEY]
    management.failure = None
    assert _joiner(management, state).join("").private_key_pem == key


def test_host_without_a_token_says_so() -> None:
    """A host that never joined and has no token names what to set."""
    with pytest.raises(JoinFailed, match="join_token"):
        _joiner(FakeManagement(), FakeState(), invited=False).join("")


def test_certificate_for_another_key_is_refused() -> None:
    """A management server's answer for another key is not kept."""
    management, state = FakeManagement(), FakeState()
    management.other_key = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(JoinFailed):
        _joiner(management, state).join("")
    assert RECORD not in state.files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (RECORD, b"{}"),
        (RECORD, b""),
        (RECORD, b'{"format": 1, "agent_address": "host:1", "certificate": "x", "management_ca": "y"}'),
        (KEY, b"no key"),
        (KEY, private_key_pem(ec.generate_private_key(ec.SECP256R1()))),
        (KEY, private_key_pem(ec.generate_private_key(ec.SECP384R1()))),
    ],
)
def test_damaged_join_identity_is_an_error(name: str, content: bytes) -> None:
    """A record or key that the agent did not write is reported, not replaced."""
    management, state = FakeManagement(), FakeState()
    _joiner(management, state).join("")
    state.files[name] = content
    with pytest.raises(StateDamaged):
        _joiner(management, state).known(NOW)


def _config(tmp_path: Path, **changes: str | None) -> Path:
    values = {
        "site": '"site"',
        "name": '"host-a"',
        "hardware_uuid": '"5D1D2D3D-0000-4000-8000-000000000001"',
        "tcti": '"swtpm:path=/run/tpm"',
        "state_directory": '"state"',
        "vm_directory": '"vms"',
        "run_directory": '"run"',
        "listener": '{ address = "127.0.0.1:7000" }',
    } | changes
    path = tmp_path / "agent.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in values.items() if value is not None))
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """Relative paths are taken from the configuration file's directory."""
    settings = AgentSettings.load(_config(tmp_path, event_log='"log"', ima_log='"/ima"'))
    assert settings.state_directory == tmp_path / "state"
    assert settings.log_paths() == {LogKind.TCG: tmp_path / "log", LogKind.IMA: Path("/ima")}
    assert settings.hardware_uuid == "5d1d2d3d-0000-4000-8000-000000000001"
    assert (settings.enrolment_offer(), settings.join_invitation()) == (None, None)


def test_agent_may_be_reached_elsewhere_than_it_listens(tmp_path: Path) -> None:
    """Behind a forwarded port the management server is told the address that reaches the agent."""
    plain = AgentSettings.load(_config(tmp_path)).listener
    assert plain.reached_at == "127.0.0.1:7000"
    listener = '{ address = "0.0.0.0:7000", advertised = "host-a.example:7100" }'
    assert AgentSettings.load(_config(tmp_path, listener=listener)).listener.reached_at == "host-a.example:7100"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tcti": None}, "without a TPM is not supported yet"),
        ({"surprise": '"x"'}, "surprise"),
        ({"hardware_uuid": '"x"'}, "hardware_uuid"),
        ({"listener": '{ address = "127.0.0.1:0" }'}, "listener"),
        ({"listener": '{ address = "127.0.0.1" }'}, "listener"),
        ({"name": None}, "name"),
    ],
)
def test_wrong_configuration_names_the_key(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    """What is missing, unknown or malformed is named in one line."""
    with pytest.raises(ConfigError, match=message):
        AgentSettings.load(_config(tmp_path, **changes))


def _token(host_name: str) -> str:
    admin = make_authority("admin")
    invitation = JoinInvitation("id", host_name, "default", 1, "authority:1", b"ca pem")
    return make_join_token(invitation, certificate=admin.certificate, key=admin.key)


def test_token_file_tells_where_to_enrol(tmp_path: Path) -> None:
    """An enrolment token carries address and CA; it goes before a configured trust authority."""
    (tmp_path / "token").write_text(_token("host-a") + "\n")
    authority = '{ address = "other:1", ca = "ca.pem" }'
    settings = AgentSettings.load(_config(tmp_path, enrolment_token='"token"', trust_authority=authority))
    offer = settings.enrolment_offer()
    assert offer is not None
    assert (offer.authority.address, offer.authority.ca_pem) == ("authority:1", b"ca pem")
    assert "." in offer.join_token


def test_host_may_enrol_without_a_token(tmp_path: Path) -> None:
    """A host without a token is told where the trust authority is, and asks for approval."""
    (tmp_path / "ca.pem").write_bytes(b"ca pem")
    settings = AgentSettings.load(_config(tmp_path, trust_authority='{ address = "other:1", ca = "ca.pem" }'))
    offer = settings.enrolment_offer()
    assert offer is not None
    assert (offer.authority.address, offer.join_token) == ("other:1", "")


@pytest.mark.parametrize("content", [None, b"", b"\xff", b"not a token", _token("host-b").encode()])
def test_wrong_token_file_is_told(tmp_path: Path, content: bytes | None) -> None:
    """A token file that is missing, is no token, or is for another host is an error that names the file."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    settings = AgentSettings.load(_config(tmp_path, enrolment_token='"token"', join_token='"token"'))
    for read in (settings.enrolment_offer, settings.join_invitation):
        with pytest.raises(ConfigError, match="token"):
            read()


def test_logs_are_read_by_kind(tmp_path: Path) -> None:
    """Logs that are asked for and at hand are read; others are left out."""
    (tmp_path / "tcg").write_bytes(b"log")
    logs = LogFiles({LogKind.TCG: tmp_path / "tcg"})
    assert logs.read((LogKind.TCG, LogKind.IMA)) == {LogKind.TCG: b"log"}
    assert logs.read((LogKind.IMA,)) == {}


def test_unreadable_log_is_told(tmp_path: Path) -> None:
    """A configured log that is missing or too large is an error that names it."""
    (tmp_path / "large").write_bytes(bytes(MAX_LOG_BYTES + 1))
    for name in ("missing", "large"):
        with pytest.raises(EventLogUnreadable, match=name):
            LogFiles({LogKind.TCG: tmp_path / name}).read((LogKind.TCG,))
