"""Following many sessions at once: what another process writes comes, and idle sessions cost next to nothing."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from api.tail import Tails, Viewer
from domain.agents import AgentConfig, ModelConfig
from domain.events import Event, SessionUpdated
from live.memory import MemoryBus
from storage.agents import Agents
from storage.database import Database, sqlite_url
from storage.journal import Draft, Journal
from storage.keys import Keys
from storage.schema import migrate
from storage.sessions import Sessions

pytestmark = pytest.mark.single_database

SESSIONS = 40
POLL_SECONDS = 0.05
LOOKS = 10


class Counting(Database):
    """Counts how often it is read."""

    reads = 0

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Any]:
        self.reads += 1
        async with super().read() as connection:
            yield connection


async def test_idle_sessions_are_looked_at_all_at_once_and_each_gets_what_another_process_writes(tmp_path: Path) -> None:
    def announce(session_id: str, events: Sequence[Event]) -> None:
        """Told to nobody, as if another process had written it."""

    database = Counting(sqlite_url(tmp_path / "test.db"), announce)
    try:
        await migrate(database.engine)
        sessions = await make_sessions(database)
        tails = Tails(database, MemoryBus(POLL_SECONDS))
        following = [asyncio.create_task(first_frame(tails, session_id)) for session_id in sessions]
        await asyncio.sleep(0.5)
        database.reads = 0
        await asyncio.sleep(POLL_SECONDS * LOOKS)
        idle_reads = database.reads
        async with database.write() as transaction:
            journal = Journal(transaction.connection, transaction.appended)
            for session_id in sessions:
                await journal.append(session_id, None, [Draft(SessionUpdated(title=session_id))])
        titles = await asyncio.wait_for(asyncio.gather(*following), 10)
    finally:
        await database.close()

    assert 0 < idle_reads <= LOOKS + 2
    assert titles == sessions


async def make_sessions(database: Database) -> list[str]:
    async with database.write() as transaction:
        workspace_id = await Keys(transaction.connection).create_workspace("test")
        config = AgentConfig(name="a", model=ModelConfig(id="demo:echo"))
        agent = await Agents(transaction.connection, workspace_id).create(config)
        sessions = Sessions(transaction.connection, workspace_id)
        return [(await sessions.create(agent.id, 1)).id for _ in range(SESSIONS)]


async def first_frame(tails: Tails, session_id: str) -> str:
    async with aclosing(tails.follow(session_id, Viewer(after=0), 0)) as frames:
        return await anext(frame.content["title"] async for frame in frames if frame)
