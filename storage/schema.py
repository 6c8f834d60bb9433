"""Bringing a database to the newest schema."""

from functools import cache
from pathlib import Path
from typing import Literal

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection as SyncConnection
from sqlalchemy import Engine, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from domain.errors import DatabaseAway, Unavailable
from storage.database import Connection

SchemaState = Literal["ok", "missing", "ahead"]
_MIGRATE_LOCK = 7_310_585_113_229_415_026  # any constant: processes that start together migrate one after the other


async def migrate(engine: Engine | AsyncEngine) -> None:
    """Apply what is missing. Processes that start together wait for each other.

    Raises Unavailable for a newer schema, and for a database that cannot be opened or read, as DatabaseAway where waiting
    may help.
    """
    try:
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                await connection.run_sync(_migrate)
        else:
            with engine.begin() as connection:
                _migrate(connection)
    except OperationalError as error:
        if engine.dialect.name == "sqlite" and getattr(error.orig, "sqlite_errorname", None) != "SQLITE_BUSY":
            raise _unusable(engine, error) from error
        raise DatabaseAway(_unusable(engine, error).message) from error
    except DatabaseError as error:
        raise _unusable(engine, error) from error


def _unusable(engine: Engine | AsyncEngine, error: DatabaseError) -> Unavailable:
    where = engine.url.render_as_string(hide_password=True)
    return Unavailable(
        f"The database {where} cannot be used ({error.orig}). If its file is damaged, put a backup in its place."
    )


async def state(connection: Connection) -> SchemaState:
    """How the database's schema stands to this release. A newer one is what a rolling upgrade looks like from behind."""
    current = (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none()
    newest, known = _revisions()
    return "ok" if current == newest else "missing" if current is None or current in known else "ahead"


@cache
def _revisions() -> tuple[str | None, frozenset[str]]:
    scripts = ScriptDirectory.from_config(config())
    return scripts.get_current_head(), frozenset(script.revision for script in scripts.walk_revisions())


def config() -> Config:
    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def _migrate(connection: SyncConnection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATE_LOCK})
    settings = config()
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in _revisions()[1]:
        raise Unavailable(f"The database is at schema {current}, which this version does not know: install a newer Perdure.")
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")
