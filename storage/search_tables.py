"""Tables by which sessions are found: the words of titles and messages, and labels.

Beside them stands what only one of the databases has, which the migration makes: on SQLite the FTS5 table `search_index`,
which triggers keep in step with `search_texts`; on Postgres its generated column `vector` with an index.
"""

from datetime import datetime

from sqlalchemy import BigInteger, Column, Index, Integer, Text
from sqlmodel import Field, SQLModel

from storage.tables import UtcDateTime


class SearchTextRow(SQLModel, table=True):
    __tablename__ = "search_texts"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_search_texts_session_id", "session_id", "event_id"),
        Index("ix_search_texts_workspace_id", "workspace_id", "id"),
    )

    id: int | None = Field(
        default=None, sa_column=Column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True)
    )
    """Grows with time."""
    workspace_id: str = Field(foreign_key="workspaces.id")
    session_id: str = Field(foreign_key="sessions.id")
    event_id: str | None = None
    """None: the session's title."""
    words: str = Field(sa_column=Column(Text(), nullable=False))
    """As `domain.search.indexed` makes them."""


class SessionLabelRow(SQLModel, table=True):
    """A session's tags and metadata, as an index of sessions. The session's own row says what they are."""

    __tablename__ = "session_labels"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (Index("ix_session_labels_listed", "workspace_id", "kind", "label", "created_at", "session_id"),)

    session_id: str = Field(foreign_key="sessions.id", primary_key=True)
    kind: str = Field(primary_key=True)
    """`tag`, or `metadata`, whose labels are `key=value`."""
    label: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    created_at: datetime = Field(sa_column=Column(UtcDateTime(), nullable=False))
    """The session's."""


def compared(_item: object, name: str | None, kind: str, *_: object) -> bool:
    """For Alembic: whether tables and migrations must agree on it."""
    if kind == "table":
        return name is None or not name.startswith("search_index")
    return (kind, name) not in {("column", "vector"), ("index", "ix_search_texts_vector")}
