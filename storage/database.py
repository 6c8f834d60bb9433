"""Connections and transactions. Repositories never commit; whoever opens the transaction does."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pydantic_core import from_json, to_json
from sqlalchemy import event
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from domain.events import Event
from storage.outages import CONNECT_SECONDS, POSTGRES_CONNECTING, connected, reachable

Announce = Callable[[str, Sequence[Event]], None]
"""Called after commit with a session's id and what was appended to its log; must not block."""


class Transaction:
    """One transaction: a connection, and what is to be told once it is committed."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection
        self.appended: dict[str, list[Event]] = {}


class Database:
    """SQLite (one writer, many readers, WAL) or Postgres behind one interface."""

    def __init__(self, url: str, announce: Announce) -> None:
        self._announce = announce
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._connect_seconds = None if self.is_sqlite else CONNECT_SECONDS
        if self.is_sqlite:
            # One writing connection in a queue of its own: SQLite's own lock is polled with sleeps of up to 100 ms,
            # and a read that turns into a write fails at once when another wrote in between.
            self._writer = _sqlite(url, pool_size=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite(url, pool_size=8, begin="BEGIN")
        else:
            self._writer = self._reader = create_async_engine(
                url,
                pool_size=10,
                max_overflow=20,
                pool_pre_ping=True,
                connect_args=POSTGRES_CONNECTING,
                json_serializer=_dump,
                json_deserializer=from_json,
            )

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[Transaction]:
        """A transaction that commits at the end of the block, rolls back on any exception, then wakes the viewers.

        Raises Unavailable, also when it is not known whether the commit happened.
        """
        with reachable():
            async with connected(self._writer, self._connect_seconds) as connection, connection.begin():
                transaction = Transaction(connection)
                yield transaction
        for session_id, events in transaction.appended.items():
            self._announce(session_id, events)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        """A consistent view that changes nothing. Raises Unavailable."""
        with reachable():
            async with connected(self._reader, self._connect_seconds) as connection:
                yield connection

    @property
    def engine(self) -> AsyncEngine:
        """The writing engine, for migrations."""
        return self._writer

    async def close(self) -> None:
        await self._writer.dispose()
        if self._reader is not self._writer:
            await self._reader.dispose()


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def _dump(value: object) -> str:
    return to_json(value).decode()


def _sqlite(url: str, pool_size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url, pool_size=pool_size, max_overflow=0, pool_timeout=60, json_serializer=_dump, json_deserializer=from_json
    )

    def connect(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        # pysqlite's own transaction handling begins late and never IMMEDIATE: take it over.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "foreign_keys=ON",
            "busy_timeout=5000",
            "cache_size=-65536",
            "mmap_size=268435456",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def started(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", connect)
    event.listen(engine.sync_engine, "begin", started)
    return engine
