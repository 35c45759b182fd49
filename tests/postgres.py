"""A PostgreSQL server for tests: one per session, on a Unix socket in a temporary directory; one database per test."""

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

_SERVER_USER = "postgres"
_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server."""

    socket_directory: Path

    def create_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self._connection_string("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return f"postgresql://{_SERVER_USER}@/{name}?host={self.socket_directory}"

    def drop_database(self, url: str) -> None:
        """Remove a database, whoever is still connected."""
        name = url.partition("@/")[2].partition("?")[0]
        with psycopg.connect(self._connection_string("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())

    def answers(self) -> bool:
        """Whether the server takes connections."""
        try:
            psycopg.connect(self._connection_string("postgres"), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _connection_string(self, database: str) -> str:
        return f"host={self.socket_directory} user={_SERVER_USER} dbname={database}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server of Debian's package, durable settings as installed; skips where there is none."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        pytest.skip("the PostgreSQL server is not installed (Debian package postgresql)")
    programs_directory = programs[-1].parent
    directory = Path(tempfile.mkdtemp(prefix="garant-pg-", dir="/tmp"))  # a socket's path must be short
    # initdb and postgres refuse root; --pdeathsig ends the server even if the test run is killed.
    run: list[str | Path] = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() == 0:
        shutil.chown(directory, _SERVER_USER, _SERVER_USER)
        run += ["--reuid", _SERVER_USER, "--regid", _SERVER_USER, "--clear-groups"]
    server = PostgresServer(directory)
    process: subprocess.Popen[bytes] | None = None
    try:
        data = directory / "data"
        initdb = [*run, programs_directory / "initdb", "--no-sync", "-A", "trust", "-U", _SERVER_USER, "-E", "UTF8"]
        subprocess.run([*initdb, "--locale=C", "-D", data], check=True, capture_output=True, cwd=directory)
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*run, programs_directory / "postgres", "-D", data, "-k", directory, "-c", "listen_addresses="],
                stdout=log,
                stderr=log,
                cwd=directory,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not server.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(directory / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield server
    finally:
        if process is not None:
            process.send_signal(2)
            process.wait(timeout=30)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty PostgreSQL database of this test's own."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of this test's own: the test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url
