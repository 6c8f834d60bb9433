"""What a worker reads before it runs a tool: one statement, for it is read at every call."""

from typing import NamedTuple

from sqlalchemy import bindparam, case, null, select
from sqlmodel import col

from domain.errors import NotFound
from domain.events import Event
from domain.files import MountedFile
from storage.database import Connection
from storage.journal import COLUMNS, as_event
from storage.tables import EventRow, RunRow, SessionRow


class ToolCall(NamedTuple):
    """A tool use, and the agent version of its run."""

    use: Event
    agent_id: str
    agent_version: int
    resources: list[MountedFile]
    """The session's files, where some of them are not in its directory yet."""


async def tool_call(connection: Connection, session_id: str, tool_use_id: str) -> ToolCall:
    """Raises NotFound."""
    row = (await connection.execute(_CALL, {"event_id": tool_use_id, "session_id": session_id})).one_or_none()
    if row is None:
        raise NotFound(f"No tool use {tool_use_id}.")
    resources = [MountedFile.model_validate(resource) for resource in row.pending or ()]
    return ToolCall(as_event(row), row.agent_id, row.agent_version, resources)


_CALL = (
    select(
        *COLUMNS,
        col(RunRow.agent_id),
        col(RunRow.agent_version),
        case((col(SessionRow.resources_pending), col(SessionRow.resources)), else_=null()).label("pending"),
    )
    .join(RunRow, col(RunRow.id) == col(EventRow.run_id))
    .join(SessionRow, col(SessionRow.id) == col(EventRow.session_id))
    .where(col(EventRow.id) == bindparam("event_id"), col(EventRow.session_id) == bindparam("session_id"))
)
