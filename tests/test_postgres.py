"""The database server that the tests start: separate databases, and nothing left behind."""

import os
from pathlib import Path

import psutil
import psycopg
import pytest

from tests import postgres
from tests.postgres import PostgresServer, PostgresUnavailable

pytestmark = pytest.mark.single_database


@pytest.fixture(autouse=True)
def _installed() -> None:
    try:
        PostgresServer().stop()
    except PostgresUnavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def test_databases_are_separate_and_speak_unicode() -> None:
    with PostgresServer() as server:
        first, second = (url.replace("+psycopg", "") for url in (server.create_database(), server.create_database()))

        with psycopg.connect(first, autocommit=True) as connection:
            connection.execute("CREATE TABLE words (word text)")
            connection.execute("INSERT INTO words VALUES ('ñandú ✓')")
            assert connection.execute("SELECT lower(word), length(word) FROM words").fetchall() == [("ñandú ✓", 7)]
        with psycopg.connect(second) as connection, pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM words")


def test_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres.tempfile, "mkdtemp", lambda prefix: str(tmp_path.parent / f"{prefix}x"))
