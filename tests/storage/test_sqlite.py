"""SQLite in the event loop's thread: other processes, cancellations and checkpoints do not hold the loop up."""

import asyncio
import multiprocessing
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from domain.errors import Unavailable
from domain.events import Event
from storage.database import Database, sqlite_url

pytestmark = pytest.mark.single_database

WRITES = 300


def quiet(_session_id: str, _events: Sequence[Event]) -> None:
    pass


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(sqlite_url(tmp_path / "test.db"), quiet)
    async with opened.write() as transaction:
        await transaction.connection.execute(text("CREATE TABLE notes (writer TEXT, number INTEGER)"))
    yield opened
    await opened.close()


async def write(database: Database, writer: str, number: int) -> None:
    async with database.write() as transaction:
        values = {"writer": writer, "number": number}
        await transaction.connection.execute(text("INSERT INTO notes VALUES (:writer, :number)"), values)


async def count(database: Database, writer: str) -> int:
    async with database.read() as connection:
        found = await connection.execute(text("SELECT count(*) FROM notes WHERE writer = :writer"), {"writer": writer})
        return found.scalar_one()


@asynccontextmanager
async def watched() -> AsyncGenerator[list[float]]:
    """How long the event loop kept others waiting, in seconds, at each look."""
    stalls: list[float] = []

    async def look() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stalls.append(time.perf_counter() - before - 0.001)

    looking = asyncio.create_task(look())
    try:
        yield stalls
    finally:
        looking.cancel()


async def _write_hard(path: Path, writer: str) -> None:
    database = Database(sqlite_url(path), quiet)
    for number in range(WRITES):
        await write(database, writer, number)
    await database.close()


def other_process(path: Path, writer: str) -> None:
    asyncio.run(_write_hard(path, writer))


async def test_two_processes_that_write_hard_both_get_through(database: Database, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=other_process, args=(tmp_path / "test.db", "other"))
    other.start()
    while await count(database, "other") == 0:  # it takes a second to begin
        await asyncio.sleep(0.01)
    waits: list[float] = []
    for number in range(WRITES):
        before = time.perf_counter()
        await write(database, "mine", number)
        waits.append(time.perf_counter() - before)
    await asyncio.to_thread(other.join, 60)

    assert other.exitcode == 0
    assert (await count(database, "mine"), await count(database, "other")) == (WRITES, WRITES)
    assert max(waits) < 5


async def test_waiting_for_another_process_leaves_the_loop_free(database: Database, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        async with watched() as stalls:
            writing = asyncio.create_task(write(database, "mine", 1))
            await asyncio.sleep(0.3)
            assert not writing.done()
            assert await count(database, "mine") == 0  # reading goes on meanwhile
            other.execute("COMMIT")
            await writing
    finally:
        other.close()
    assert len(stalls) > 20
    assert await count(database, "mine") == 1


async def test_a_cancelled_transaction_leaves_nothing_and_frees_the_writer(database: Database) -> None:
    inside = asyncio.Event()

    async def half() -> None:
        async with database.write() as transaction:
            await transaction.connection.execute(text("INSERT INTO notes VALUES ('half', 1)"))
            inside.set()
            await asyncio.sleep(60)

    writing = asyncio.create_task(half())
    await inside.wait()
    waiting = asyncio.create_task(write(database, "next", 1))
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await asyncio.wait_for(waiting, 5)
    assert (await count(database, "half"), await count(database, "next")) == (0, 1)


async def test_cancelled_while_it_waits_for_the_lock(database: Database, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(write(database, "mine", 1))
    await asyncio.sleep(0.05)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    other.close()
    await asyncio.wait_for(write(database, "mine", 2), 5)
    assert await count(database, "mine") == 1


async def test_a_lock_that_is_never_given_up_is_an_error(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.sqlite.LOCK_SECONDS", 0.2)
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unavailable):
        await write(database, "mine", 1)
    other.close()
    await write(database, "mine", 2)
    assert await count(database, "mine") == 1
