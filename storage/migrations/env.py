"""Alembic's entry point. The connection comes from `storage.schema.migrate`."""

from typing import Literal

from alembic import context
from sqlmodel import AutoString

import storage.batch_tables  # and with it storage.tables
from storage.search_tables import compared


def render(kind: str, value: object, _context: object) -> str | Literal[False]:
    """Migrations name SQLAlchemy's types, not SQLModel's own."""
    return "sa.String()" if kind == "type" and isinstance(value, AutoString) else False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=storage.batch_tables.SQLModel.metadata,
    render_as_batch=True,
    compare_type=True,
    render_item=render,
    include_object=compared,
)
with context.begin_transaction():
    context.run_migrations()
