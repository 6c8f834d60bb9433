"""The journal: gap-free, idempotent, in step with the rows, whatever happens at once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlmodel import SQLModel

from domain.agents import AgentConfig, ModelConfig
from domain.clock import now
from domain.errors import RunFinished
from domain.events import (
    AgentMessage,
    ModelRequestEnd,
    RunCompleted,
    RunStarted,
    TextContent,
    UserMessage,
)
from domain.ids import new_id
from domain.runs import StopReason
from domain.usage import Cost, Usage
from storage.agents import Agents
from storage.database import Database, sqlite_url
from storage.journal import Draft, Journal, read
from storage.keys import Keys
from storage.rows import add
from storage.runs import Runs
from storage.schema import migrate
from storage.search_tables import compared
from storage.sessions import Sessions
from storage.tables import RunRow
from tests.postgres import PostgresServer


class Log:
    """A database with one session and one run."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.announced: list[int] = []
        self.workspace_id = self.session_id = self.run_id = ""

    async def prepare(self) -> None:
        await migrate(self.database.engine)
        async with self.database.write() as transaction:
            self.workspace_id = await Keys(transaction.connection).create_workspace("test")
            config = AgentConfig(name="a", model=ModelConfig(id="demo:echo"))
            agent = await Agents(transaction.connection, self.workspace_id).create(config)
            session = await Sessions(transaction.connection, self.workspace_id).create(agent.id, 1)
            self.session_id, self.run_id = session.id, new_id("run")
            moment = now()
            await add(
                transaction.connection,
                RunRow(
                    id=self.run_id,
                    workspace_id=self.workspace_id,
                    session_id=session.id,
                    kind="turn",
                    agent_id=agent.id,
                    agent_version=1,
                    agent_name="a",
                    model="demo:echo",
                    status="queued",
                    limits={},
                    meta={},
                    created_at=moment,
                    touched_at=moment,
                ),
            )

    async def append(self, *payloads: object, key: str | None = None) -> list[int]:
        async with self.database.write() as transaction:
            journal = Journal(transaction.connection, transaction.appended)
            drafts = [Draft(payload) for payload in payloads]  # type: ignore[arg-type]
            return [event.seq for event in await journal.append(self.session_id, self.run_id, drafts, key=key)]


def said(text: str) -> AgentMessage:
    return AgentMessage(content=(TextContent(text=text),))


@pytest.fixture
async def log(tmp_path: Path, postgres: PostgresServer | None) -> AsyncIterator[Log]:
    announced: list[int] = []
    url = sqlite_url(tmp_path / "test.db") if postgres is None else postgres.create_database()
    database = Database(url, lambda _, events: announced.extend(event.seq for event in events))
    prepared = Log(database)
    prepared.announced = announced
    await prepared.prepare()
    yield prepared
    await database.close()


async def test_concurrent_appends_are_gap_free_and_in_commit_order(log: Log) -> None:
    async def one(number: int) -> list[int]:
        return await log.append(said(f"{number}a"), said(f"{number}b"))

    seqs = await asyncio.gather(*(one(number) for number in range(40)))

    assert sorted(seq for pair in seqs for seq in pair) == list(range(1, 81))
    assert all(pair[1] == pair[0] + 1 for pair in seqs)
    async with log.database.read() as connection:
        events = await read(connection, log.session_id)
        session = await Sessions(connection, log.workspace_id).get(log.session_id)
    assert [event.seq for event in events] == list(range(1, 81))
    assert (session.last_seq, session.message_count) == (80, 80)
    assert sorted(log.announced) == list(range(1, 81))


async def test_an_append_with_a_used_key_writes_nothing(log: Log) -> None:
    first = await log.append(said("a"), said("b"), key="k")
    again = await log.append(said("other"), key="k")
    assert again == first
    async with log.database.read() as connection:
        assert len(await read(connection, log.session_id)) == 2


async def test_the_same_key_at_once_writes_once(log: Log) -> None:
    seqs = await asyncio.gather(*(log.append(said("x"), key="same") for _ in range(10)), return_exceptions=True)
    assert {tuple(found) for found in seqs if isinstance(found, list)} == {(1,)}
    async with log.database.read() as connection:
        assert len(await read(connection, log.session_id)) == 1


async def test_of_two_that_start_at_once_one_makes_the_default_workspace(log: Log) -> None:
    async def start() -> bool:
        async with log.database.write() as transaction:
            return await Keys(transaction.connection).ensure_default_workspace()

    async with log.database.write() as transaction:
        assert await Keys(transaction.connection).ensure_default_workspace()
        second = asyncio.create_task(start())
        await asyncio.sleep(0.2)  # until it has looked, and found none

    assert await second is False


async def test_a_failed_transaction_leaves_no_gap(log: Log) -> None:
    await log.append(said("a"))
    with pytest.raises(ZeroDivisionError):
        async with log.database.write() as transaction:
            journal = Journal(transaction.connection, transaction.appended)
            await journal.append(log.session_id, log.run_id, [Draft(said("lost"))])
            raise ZeroDivisionError
    assert await log.append(said("b")) == [2]


async def test_nothing_is_written_for_a_run_that_is_over(log: Log) -> None:
    await log.append(RunStarted())
    await log.append(RunCompleted(stop_reason=StopReason(type="end_turn")))
    with pytest.raises(RunFinished):
        await log.append(said("too late"))
    async with log.database.read() as connection:
        assert [event.type for event in await read(connection, log.session_id)] == ["run.started", "run.completed"]


async def test_an_unknown_price_makes_the_sum_unknown_and_never_zero(log: Log) -> None:
    def end(cost: Cost | None) -> ModelRequestEnd:
        usage = Usage(input_tokens=10, output_tokens=5)
        return ModelRequestEnd(model_request_start_id="x", model_usage=usage, cost=cost, duration_ms=1, attempt=1)

    costs: list[int | None] = []
    for cost in (Cost(amount="0.25"), Cost(amount="0.5"), None, Cost(amount="1")):
        await log.append(end(cost))
        async with log.database.read() as connection:
            costs.append((await Runs(connection).get(log.run_id)).cost_nano_usd)

    assert costs == [250_000_000, 750_000_000, None, None]
    async with log.database.read() as connection:
        run = await Runs(connection).get(log.run_id)
    assert (run.input_tokens, run.output_tokens, run.step_count) == (40, 20, 4)


async def test_messages_survive_odd_text(log: Log) -> None:
    text = "emoji 🦉, quote \" ' \\, nul \x00, line\nbreak"
    await log.append(UserMessage(content=(TextContent(text=text),)), said(text))
    async with log.database.read() as connection:
        events = await read(connection, log.session_id)
    assert isinstance(events[0].payload, UserMessage)
    assert events[0].payload.content == (TextContent(text=text),)


async def test_the_migrations_build_what_the_tables_say(log: Log) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "include_object": compared}
        return compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)

    engine = log.database.engine
    if isinstance(engine, AsyncEngine):
        async with engine.connect() as connection:
            assert await connection.run_sync(differences) == []
    else:
        with engine.connect() as connection:
            assert differences(connection) == []
