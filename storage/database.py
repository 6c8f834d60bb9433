"""Connections and transactions. Repositories never commit; whoever opens the transaction does."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import from_json
from sqlalchemy import CursorResult, Engine, Executable
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from domain.events import Event
from storage.outages import CONNECT_SECONDS, POSTGRES_CONNECTING, connected, reachable
from storage.sqlite import Sqlite, dump

Announce = Callable[[str, Sequence[Event]], None]
"""Called after commit with a session's id and what was appended to its log; must not block."""


class Connection(Protocol):
    """What our SQL needs of a connection."""

    async def execute(
        self, statement: Executable, parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None, /
    ) -> CursorResult[Any]: ...


class Transaction:
    """One transaction: a connection, and what is to be told once it is committed."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.appended: dict[str, list[Event]] = {}


class Database:
    """SQLite or Postgres behind one interface."""

    def __init__(self, url: str, *announce: Announce) -> None:
        self.announce = [*announce]
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self._store = Sqlite(url) if self.is_sqlite else Postgres(url)

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[Transaction]:
        """A transaction that commits at the end of the block, rolls back on any exception, then wakes the viewers.

        Raises Unavailable, also when it is not known whether the commit happened.
        """
        with reachable():
            async with self._store.write() as connection:
                transaction = Transaction(connection)
                yield transaction
        for session_id, events in transaction.appended.items():
            for announce in self.announce:
                announce(session_id, events)

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Connection]:
        """A consistent view that changes nothing. Raises Unavailable."""
        with reachable():
            async with self._store.read() as connection:
                yield connection

    @property
    def engine(self) -> Engine | AsyncEngine:
        """For migrations."""
        return self._store.engine

    async def close(self) -> None:
        await self._store.close()


class Postgres:
    """Any number of writers: rows have locks of their own."""

    def __init__(self, url: str) -> None:
        self.engine = create_async_engine(
            url,
            pool_size=10,
            max_overflow=20,
            pool_pre_ping=True,
            connect_args=POSTGRES_CONNECTING,
            json_serializer=dump,
            json_deserializer=from_json,
        )

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection]:
        async with connected(self.engine, CONNECT_SECONDS) as connection, connection.begin():
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        async with connected(self.engine, CONNECT_SECONDS) as connection:
            yield connection

    async def close(self) -> None:
        await self.engine.dispose()


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"
