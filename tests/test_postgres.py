"""The database server that the tests start: separate databases, and nothing left behind."""

import os
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import postgres
from tests.postgres import PostgresServer, PostgresUnavailable, find_binaries

pytestmark = pytest.mark.single_database


@pytest.fixture
def installed() -> None:
    try:
        find_binaries()
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


@pytest.mark.usefixtures("installed")
def test_databases_are_separate_and_nothing_stays_behind() -> None:
    with PostgresServer() as server:
        first, second = (server.create_database().replace("+psycopg", "") for _ in range(2))
        with psycopg.connect(first, autocommit=True) as connection:
            connection.execute("CREATE TABLE words (word text)")
            connection.execute("INSERT INTO words VALUES ('ñandú ✓')")
            assert connection.execute("SELECT word, length(word) FROM words").fetchall() == [("ñandú ✓", 7)]
        with psycopg.connect(second) as connection, pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM words")

        left_open = psycopg.connect(first)
        assert server.process is not None
        processes = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]

    left_open.close()
    assert not [process for process in processes if process.is_running()]
    assert not server.directory.exists()


@pytest.mark.usefixtures("installed")
def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    server = PostgresServer()
    with PostgresServer() as other:
        monkeypatch.setattr(postgres, "free_port", lambda: other.port)

        with pytest.raises(PostgresUnavailable, match="in use"), server:
            pytest.fail("it started on a port in use")

    assert not server.directory.exists()


def test_a_machine_without_postgres_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(postgres, "DEBIAN", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PostgresUnavailable, match="apt-get install postgresql"):
        find_binaries()
