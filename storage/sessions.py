"""Sessions: rows of conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, bindparam, delete, select, update
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound
from domain.files import MountedFile
from domain.ids import new_id
from domain.sessions import OnBusy, SessionStatus
from storage.database import Connection
from storage.rows import Page, add, fetch_one, owned, page
from storage.tables import AgentRow, ApprovalRow, ArtifactRow, ClientTokenRow, EventRow, RunRow, SessionRow, WaitRow


@dataclass(frozen=True)
class SessionFilter:
    agent_id: str | None = None
    agent_version: int | None = None
    statuses: Sequence[SessionStatus] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    include_archived: bool = False


class Sessions:
    """All SQL on sessions but for what the journal writes. Every method is scoped by workspace."""

    def __init__(self, connection: Connection, workspace_id: str) -> None:
        self._connection = connection
        self._workspace_id = workspace_id

    async def create(
        self,
        agent_id: str,
        agent_version: int,
        *,
        title: str | None = None,
        metadata: dict[str, str] | None = None,
        on_busy: OnBusy = "queue",
        permissions: Mapping[str, str] | None = None,
        environment_id: str = "env_default",
        resources: Sequence[MountedFile] = (),
    ) -> SessionRow:
        moment = now()
        row = SessionRow(
            id=new_id("sesn"),
            workspace_id=self._workspace_id,
            agent_id=agent_id,
            agent_version=agent_version,
            title=title,
            meta=metadata or {},
            on_busy=on_busy,
            permissions=dict(permissions or {}),
            environment_id=environment_id,
            resources=[resource.model_dump() for resource in resources] or None,
            resources_pending=bool(resources),
            created_at=moment,
            updated_at=moment,
        )
        await add(self._connection, row)
        return row

    async def get(self, session_id: str, *, lock: bool = False) -> SessionRow:
        """Raises NotFound, also for another workspace's id."""
        statement = select(SessionRow).where(
            col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id
        )
        found = await fetch_one(self._connection, SessionRow, statement.with_for_update() if lock else statement)
        if found is None:
            raise NotFound(f"No session {session_id}.")
        return found

    async def change(self, session_id: str, **columns: Any) -> None:
        await self._connection.execute(
            update(SessionRow)
            .where(col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id)
            .values(updated_at=now(), **columns)
        )

    async def delete(self, session_id: str) -> None:
        """The session with its runs, events, artifacts and tokens. The caller has seen that no run is active."""
        for row in (ClientTokenRow, ApprovalRow, WaitRow, ArtifactRow, EventRow, RunRow):
            await self._connection.execute(delete(row).where(col(row.session_id) == session_id))
        await self._connection.execute(
            delete(SessionRow).where(col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id)
        )

    async def add_resources(self, session: SessionRow, more: Sequence[MountedFile]) -> None:
        """More files for the session's directory."""
        resources = [*(session.resources or []), *(resource.model_dump() for resource in more)]
        await self.change(session.id, resources=resources, resources_pending=True)

    async def find(self, wanted: SessionFilter, *, limit: int, cursor: str | None, descending: bool) -> Page[SessionRow]:
        statement = select(SessionRow)
        if wanted.agent_id is None:
            statement = statement.where(col(SessionRow.workspace_id) == self._workspace_id)
        else:
            statement = statement.where(col(SessionRow.agent_id) == owned(AgentRow, wanted.agent_id, self._workspace_id))
        if not wanted.include_archived:
            statement = statement.where(col(SessionRow.archived_at).is_(None))
        if wanted.agent_version is not None:
            statement = statement.where(col(SessionRow.agent_version) == wanted.agent_version)
        if wanted.created_after is not None:
            statement = statement.where(col(SessionRow.created_at) > wanted.created_after)
        if wanted.created_before is not None:
            statement = statement.where(col(SessionRow.created_at) < wanted.created_before)
        return await page(
            self._connection,
            SessionRow,
            statement,
            at=SessionRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=SessionRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
            one_of=[col(SessionRow.status) == status for status in dict.fromkeys(wanted.statuses)],
        )


_PENDING_RESOURCES = select(col(SessionRow.resources)).where(
    col(SessionRow.id) == bindparam("session_id"), col(SessionRow.resources_pending)
)


async def pending_resources(connection: Connection, session_id: str) -> list[MountedFile]:
    """The session's files, where some of them are not in its directory yet."""
    found = (await connection.execute(_PENDING_RESOURCES, {"session_id": session_id})).scalar_one_or_none()
    return [MountedFile.model_validate(resource) for resource in found or ()]


async def resources_mounted(connection: Connection, session_id: str, count: int) -> None:
    """The first so many files of the session are in its directory: nothing is pending unless more have come meanwhile."""
    statement = select(col(SessionRow.resources)).where(col(SessionRow.id) == session_id).with_for_update()
    found = (await connection.execute(statement)).scalar_one_or_none()
    if len(found or ()) == count:
        await connection.execute(update(SessionRow).where(col(SessionRow.id) == session_id).values(resources_pending=False))


async def expire_directories(
    connection: Connection, session_ids: Sequence[str], before: datetime
) -> tuple[list[str], list[str]]:
    """Those of the sessions that have been idle since before that time, and those that there are not.

    Files that were given to the idle ones are to be put into their directories again if they go on.
    """
    idle = (col(SessionRow.updated_at) < before, col(SessionRow.active_run_id).is_(None))
    mine = col(SessionRow.id).in_(session_ids)
    await connection.execute(
        update(SessionRow).where(mine, *idle, col(SessionRow.resources).is_not(None)).values(resources_pending=True)
    )
    rows = await connection.execute(select(col(SessionRow.id), and_(*idle).label("idle")).where(mine))
    known = {row.id: row.idle for row in rows}
    return [id for id, idle in known.items() if idle], [id for id in session_ids if id not in known]
