"""A database from before there was search finds what was said before."""

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Connection, create_engine, text

from domain.search import terms
from storage.database import Database, sqlite_url
from storage.labels import Label
from storage.schema import config, migrate
from storage.sessions import SessionFilter, Sessions
from tests.postgres import PostgresServer, PostgresUnavailable

OLD = """
INSERT INTO workspaces (id, name, created_at) VALUES ('wrkspc_a', 'a', '2026-01-01');
INSERT INTO agents (id, workspace_id, name, version, inline, created_at, updated_at)
  VALUES ('agent_a', 'wrkspc_a', 'a', 1, false, '2026-01-01', '2026-01-01');
INSERT INTO agent_versions (agent_id, version, config, created_at)
  VALUES ('agent_a', 1, '{"name": "a", "model": {"id": "demo:echo"}}', '2026-01-01');
INSERT INTO sessions (id, workspace_id, agent_id, agent_version, title, environment_id, on_busy, status, meta, last_seq,
    message_count, active_seconds, input_tokens, output_tokens, cache_read_input_tokens, cache_creation_input_tokens,
    usage_estimated, model_call_count, created_at, updated_at)
  VALUES ('sesn_a', 'wrkspc_a', 'agent_a', 1, 'Old title', 'env_default', 'queue', 'idle', '{"k": "v"}', 2, 0, 0, 0, 0, 0, 0,
    false, 0, '2026-01-01', '2026-01-01')
"""


@pytest.mark.single_database
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_is_there_already_is_found(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        await _filled(sqlite_url(tmp_path / "old.db"))
        return
    try:
        with PostgresServer() as server:
            await _filled(server.create_database())
    except PostgresUnavailable as error:
        pytest.skip(str(error))


async def _filled(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        _upgrade(connection, "0006_threads")
        for statement in OLD.split(";\n"):
            connection.exec_driver_sql(statement)
        for number in range(1100):  # several batches
            _say(connection, number)
    engine.dispose()
    database = Database(url, lambda _session, _events: None)
    await migrate(database.engine)

    async with database.read() as connection:
        sessions = Sessions(connection, "wrkspc_a")

        async def found(query: str, wanted: SessionFilter) -> list[str | None]:
            answer, _ = await sessions.search(terms(query), wanted, is_sqlite=database.is_sqlite, limit=5, cursor=None)
            return [each.hit.event_id for each in answer]

        everything = SessionFilter(provider="demo", model="demo:echo", labels=[Label("metadata", "k=v")])
        assert await found("old title", everything) == [None]
        assert await found("number1099 said", everything) == ["sevt_1099"]
        assert await found("number0003", everything) == ["sevt_0003"]
        assert await found("number0500", everything) == []  # a sub-agent's
        listed = await sessions.find(everything, limit=5, cursor=None, descending=True)
        assert [row.tags for row in listed.rows] == [[]]
    await database.close()


def _say(connection: Connection, number: int) -> None:
    content = f'[{{"type": "text", "text": "Number{number:04} "}}, {{"type": "text", "text": "said"}}]'
    kind = "agent.message" if number in (3, 1099) else "user.message"
    thread = "sthr_a" if number == 500 else None
    payload = f'{{"type": "{kind}", "content": {content}}}'
    connection.execute(
        text(
            "INSERT INTO events (session_id, seq, id, type, append_index, created_at, payload, thread_id)"
            " VALUES ('sesn_a', :seq, :id, :type, 0, '2026-01-01', :payload, :thread)"
        ),
        {"seq": number + 1, "id": f"sevt_{number:04}", "type": kind, "payload": payload, "thread": thread},
    )


def _upgrade(connection: Connection, revision: str) -> None:
    settings = config()
    settings.attributes["connection"] = connection
    command.upgrade(settings, revision)
