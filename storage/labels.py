"""Tags and metadata of sessions as an index: what a session is found by beside what was said in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, exists, insert, select
from sqlmodel import col

from storage.database import Connection
from storage.search_tables import SessionLabelRow
from storage.tables import SessionRow


@dataclass(frozen=True)
class Label:
    kind: Literal["tag", "metadata"]
    text: str


def as_label(key: str, value: str) -> str:
    """A pair of metadata."""
    return f"{key}={value}"


async def label(connection: Connection, session: SessionRow, kind: Literal["tag", "metadata"]) -> None:
    """The index as the session's row says it."""
    await connection.execute(
        delete(SessionLabelRow).where(col(SessionLabelRow.session_id) == session.id, col(SessionLabelRow.kind) == kind)
    )
    texts: Iterable[str] = session.tags if kind == "tag" else (as_label(*pair) for pair in session.meta.items())
    rows: list[dict[str, Any]] = [
        {
            "session_id": session.id,
            "kind": kind,
            "label": text,
            "workspace_id": session.workspace_id,
            "created_at": session.created_at,
        }
        for text in dict.fromkeys(texts)
    ]
    if rows:
        await connection.execute(insert(SessionLabelRow), rows)


def listed_under(workspace_id: str, wanted: Label) -> tuple[ColumnElement[bool], ...]:
    """Conditions on rows of the index."""
    row = SessionLabelRow
    return (
        col(row.workspace_id) == workspace_id,
        col(row.kind) == wanted.kind,
        col(row.label) == wanted.text,
    )


def have(labels: Sequence[Label]) -> list[ColumnElement[bool]]:
    """Conditions on sessions: each of the labels."""
    row = SessionLabelRow
    return [
        exists(
            select(col(row.session_id)).where(
                col(row.session_id) == col(SessionRow.id), col(row.kind) == wanted.kind, col(row.label) == wanted.text
            )
        ).correlate(SessionRow)
        for wanted in labels
    ]
