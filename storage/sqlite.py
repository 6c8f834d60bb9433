"""SQLite in the event loop's own thread: a statement takes less time than handing it to another thread does."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from itertools import chain, repeat
from typing import Any

from pydantic_core import from_json, to_json
from sqlalchemy import Connection, CursorResult, Engine, Executable, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

LOCK_SECONDS = 5
"""How long a writer waits for other processes."""
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02)
CHECKPOINT_SECONDS = 2
_LONG_WAL = 1000
"""Pages."""


class InlineConnection:
    """What our SQL uses of an `AsyncConnection`, done at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[Any]:
        return self._connection.execute(statement, parameters)


class Sqlite:
    """One database file: one writer and many readers at a time, in WAL mode."""

    def __init__(self, url: str) -> None:
        self._path = str(make_url(url).database)
        # Waiting for the lock is done outside of SQLite, which would hold up the event loop. Only migrations, which
        # are done before anything else runs, wait in there.
        self._writer = _engine(url, "BEGIN IMMEDIATE", "busy_timeout=0", "wal_autocheckpoint=0")
        self._reader = _engine(url, "BEGIN")
        self.engine = _engine(url, "BEGIN IMMEDIATE")
        self._writing = asyncio.Lock()
        self._kept: Connection | None = None
        self._checkpointing: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[InlineConnection]:
        # A queue of our own, so that only other processes are ever waited for by polling.
        async with self._writing:
            # There is one writer, which keeps its connection until something goes wrong: to take one out of the pool and put it
            # back costs as much as two statements.
            connection = self._kept or self._writer.connect()
            self._kept = None
            try:
                await _begin(connection)
                yield InlineConnection(connection)
                connection.commit()
            except BaseException:
                connection.close()
                raise
            self._kept = connection
        if self._checkpointing is None or self._checkpointing.done():
            self._checkpointing = asyncio.create_task(self._checkpoint())

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[InlineConnection]:
        # Nothing below suspends: without this, reading page after page would keep everybody else waiting.
        await asyncio.sleep(0)
        with self._reader.connect() as connection:
            yield InlineConnection(connection)

    async def close(self) -> None:
        if self._checkpointing is not None:
            self._checkpointing.cancel()
        if self._kept is not None:
            self._kept.close()
        for engine in (self._writer, self._reader, self.engine):
            engine.dispose()

    async def _checkpoint(self) -> None:
        """Copy the WAL into the database. Left to SQLite, a commit does it now and then, and waits for the disk twice."""
        await asyncio.sleep(CHECKPOINT_SECONDS)
        # A full disk, or one that is broken, says so at the next write.
        with suppress(sqlite3.Error):
            if await asyncio.to_thread(_copy_wal, self._path) > _LONG_WAL:
                # The WAL begins anew only once it is copied to its end, which is never while others write.
                async with self._writing:
                    await asyncio.to_thread(_copy_wal, self._path)


def _copy_wal(path: str) -> int:
    """The number of pages in the WAL."""
    with closing(sqlite3.connect(path)) as connection:
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return pages


async def _begin(connection: Connection) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    for pause in chain(_PAUSES, repeat(_PAUSES[-1])):
        try:
            connection.begin()
        except OperationalError as error:
            if not _busy(error) or time.monotonic() > deadline:
                raise
            await asyncio.sleep(pause)
        else:
            return


def _busy(error: OperationalError) -> bool:
    return isinstance(error.orig, sqlite3.OperationalError) and error.orig.sqlite_errorcode == sqlite3.SQLITE_BUSY


def dump(value: object) -> str:
    """As JSON; models of ours as they are."""
    return to_json(value).decode()


def _engine(url: str, begin: str, *pragmas: str) -> Engine:
    engine = create_engine(
        make_url(url).set(drivername="sqlite"),
        pool_size=8,
        max_overflow=-1,
        json_serializer=dump,
        json_deserializer=from_json,
    )

    def connected(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        # The driver's own transaction handling begins late and never IMMEDIATE: take it over.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout={LOCK_SECONDS * 1000}",
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "cache_size=-65536",
            "mmap_size=268435456",
            *pragmas,
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def began(connection: Connection) -> None:
        # Of the driver: SQLAlchemy's own way of executing takes ten times as long as this statement.
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        try:
            driver.execute(begin)
        except sqlite3.Error as error:
            raise OperationalError(begin, None, error) from error

    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", began)
    return engine
