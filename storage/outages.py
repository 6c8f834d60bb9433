"""What it looks like when the database cannot be used now, and how long anybody waits to find out."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.errors import Unavailable

T = TypeVar("T")

CONNECT_SECONDS = 4.0
"""From asking for a connection to having one that answers."""
POSTGRES_CONNECTING = {
    # libpq's own: without them a server that vanished is noticed after two hours, and its connections are held as long.
    # https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
    "connect_timeout": 3,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,  # milliseconds
}
_READ_ONLY = "25006"
"""SQLSTATE: a standby, or a primary that has just become one."""


@contextmanager
def reachable() -> Generator[None]:
    """Raises Unavailable where the driver says that the database cannot be reached, is locked, full or overloaded.

    What was being committed then may have been done or not: whoever tries again looks first, by its key.
    """
    try:
        yield
    except PoolTimeout as error:
        raise Unavailable("The database is overloaded: no connection was free in time.") from error
    except DBAPIError as error:
        if _away(error):
            raise Unavailable(f"The database cannot be used now ({_first_line(error)}).") from error
        raise


async def in_time(work: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Do it, or raise Unavailable when the time is over. None: without a limit.

    Unlike `asyncio.timeout` it does not wait for the work to have been cancelled: against a database that is frozen
    that takes the driver five seconds more.
    """
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    except asyncio.CancelledError:
        _abandon(task)
        raise
    if not done:
        _abandon(task)
        raise Unavailable("The database does not answer.")
    return task.result()


@asynccontextmanager
async def connected(engine: AsyncEngine, within_seconds: float) -> AsyncGenerator[AsyncConnection]:
    """A connection that has just answered. Raises Unavailable when there is none in time."""
    connection = engine.connect()
    await in_time(_start(connection), within_seconds)
    try:
        yield connection
    finally:
        # As SQLAlchemy does it: a cancelled caller still gives the connection back.
        await asyncio.shield(asyncio.create_task(connection.close()))


async def _start(connection: AsyncConnection) -> None:
    await connection.start()
    task = asyncio.current_task()
    if task is not None and task.cancelling():  # it came too late, and nobody else will give it back
        await connection.close()


def _abandon(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    task.add_done_callback(lambda late: late.cancelled() or late.exception())  # else it is logged as never looked at


def _away(error: DBAPIError) -> bool:
    broken = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
    return broken or getattr(error.orig, "sqlstate", None) == _READ_ONLY


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0]
