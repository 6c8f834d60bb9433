"""Bringing a database to the newest schema."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.asyncio import AsyncEngine

from domain.errors import Unavailable

_MIGRATE_LOCK = 7_310_585_113_229_415_026  # any constant: processes that start together migrate one after the other


async def migrate(engine: Engine | AsyncEngine) -> None:
    """Apply what is missing. Processes that start together wait for each other.

    Raises Unavailable for a newer schema, and for a database that cannot be opened or read.
    """
    try:
        if isinstance(engine, AsyncEngine):
            async with engine.begin() as connection:
                await connection.run_sync(_migrate)
        else:
            with engine.begin() as connection:
                _migrate(connection)
    except DatabaseError as error:
        where = engine.url.render_as_string(hide_password=True)
        raise Unavailable(
            f"The database {where} cannot be used ({error.orig}). If its file is damaged, put a backup in its place."
        ) from error


def config() -> Config:
    found = Config()
    found.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return found


def _migrate(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATE_LOCK})
    settings = config()
    known = ScriptDirectory.from_config(settings)
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in {script.revision for script in known.walk_revisions()}:
        raise Unavailable(f"The database is at schema {current}, which this version does not know: install a newer Perdure.")
    settings.attributes["connection"] = connection
    command.upgrade(settings, "head")
