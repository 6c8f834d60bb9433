"""Sessions: rows of conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, delete, exists, false, or_, select, update
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound
from domain.files import MountedFile
from domain.ids import new_id
from domain.search import Term
from domain.sessions import QUEUE_DEPTH, Keep, OnBusy, SessionStatus
from storage.database import Connection
from storage.forgotten import forget_workflows
from storage.labels import Label, have, label, listed_under
from storage.rows import Page, add, fetch, fetch_only, owned, page
from storage.runs import unfinished
from storage.search_index import FEW_MESSAGES, FEW_SESSIONS, Hit, index_title, ranked
from storage.search_tables import SearchTextRow, SessionLabelRow
from storage.tables import (
    AgentRow,
    AgentVersionRow,
    ApprovalRow,
    ArtifactRow,
    ClientTokenRow,
    EventRow,
    RunRow,
    SessionRow,
    WaitRow,
)


@dataclass(frozen=True)
class SessionFilter:
    agent_id: str | None = None
    agent_version: int | None = None
    statuses: Sequence[SessionStatus] = ()
    created_after: datetime | None = None
    created_before: datetime | None = None
    include_archived: bool = False
    provider: str | None = None
    model: str | None = None
    labels: Sequence[Label] = ()
    """All of them."""
    forked_from: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """All but for the agent, the labels and the statuses, each of which has an index of its own to find rows by."""
        archived = None if self.include_archived else col(SessionRow.archived_at).is_(None)
        pairs = (
            (SessionRow.agent_version, self.agent_version),
            (SessionRow.provider, self.provider),
            (SessionRow.model, self.model),
            (SessionRow.forked_from_id, self.forked_from),
        )
        given = [col(column) == value for column, value in pairs if value is not None]
        if self.created_after is not None:
            given.append(col(SessionRow.created_at) > self.created_after)
        if self.created_before is not None:
            given.append(col(SessionRow.created_at) < self.created_before)
        given.append(col(SessionRow.hidden).is_(False))
        return given if archived is None else [archived, *given]


@dataclass(frozen=True)
class Found:
    """A session and where the text is by which it was found."""

    session: SessionRow
    hit: Hit


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
        tags: Sequence[str] = (),
        on_busy: OnBusy = "queue",
        queue_depth: int = QUEUE_DEPTH,
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
            tags=list(tags),
            on_busy=on_busy,
            queue_depth=queue_depth,
            permissions=dict(permissions or {}),
            environment_id=environment_id,
            resources=[resource.model_dump() for resource in resources] or None,
            resources_pending=bool(resources),
            created_at=moment,
            updated_at=moment,
        )
        await enter(self._connection, row)
        return row

    async def get(self, session_id: str, *, lock: bool = False) -> SessionRow:
        """Raises NotFound, also for another workspace's id."""
        mine = {"session_id": session_id, "workspace_id": self._workspace_id}
        found = await fetch_only(self._connection, SessionRow, _LOCK if lock else _GET, mine)
        if found is None:
            raise NotFound(f"No session {session_id}.")
        return found

    async def change(self, session_id: str, **columns: Any) -> None:
        await self._connection.execute(
            update(SessionRow)
            .where(col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id)
            .values(updated_at=now(), **columns)
        )
        if "tags" in columns:
            await label(self._connection, await self.get(session_id), "tag")
        if "meta" in columns:
            await label(self._connection, await self.get(session_id), "metadata")

    async def expired(self, session_id: str, keep: Keep) -> bool:
        """Whether it is there and not kept any longer; locked, so that no message comes between."""
        mine = (col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id)
        # The lock first: a message that was committed just before it is seen only by a statement that begins behind it.
        await self._connection.execute(select(col(SessionRow.id)).where(*mine).with_for_update())
        return (await self._connection.execute(select(col(SessionRow.id)).where(*mine, _over(keep)))).first() is not None

    async def delete(self, session_id: str) -> None:
        """The session with its runs, events, artifacts and tokens; their workflows are noted to be deleted in Temporal.

        The caller has seen that no run is active.
        """
        await forget_workflows(self._connection, session_id)
        for row in (SearchTextRow, SessionLabelRow, ClientTokenRow, ApprovalRow, WaitRow, ArtifactRow, EventRow, RunRow):
            await self._connection.execute(delete(row).where(col(row.session_id) == session_id))
        await self._connection.execute(
            delete(SessionRow).where(col(SessionRow.id) == session_id, col(SessionRow.workspace_id) == self._workspace_id)
        )

    async def add_resources(self, session: SessionRow, more: Sequence[MountedFile]) -> None:
        """More files for the session's directory."""
        resources = [*(session.resources or []), *(resource.model_dump() for resource in more)]
        await self.change(session.id, resources=resources, resources_pending=True)

    async def find(self, wanted: SessionFilter, *, limit: int, cursor: str | None, descending: bool) -> Page[SessionRow]:
        statement, by = self._filtered(wanted)
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
            by=by,
        )

    async def search(
        self, terms: Sequence[Term], wanted: SessionFilter, *, is_sqlite: bool, limit: int, cursor: str | None
    ) -> tuple[list[Found], str | None]:
        """Those that meet the filter and have all the terms in their title or in one message, the best first."""
        conditions = [*wanted.conditions(), *have(wanted.labels)]
        if wanted.agent_id is not None:
            conditions.append(col(SessionRow.agent_id) == wanted.agent_id)
        if wanted.statuses:
            conditions.append(col(SessionRow.status).in_(wanted.statuses))
        hits = await ranked(
            self._connection,
            self._workspace_id,
            terms,
            conditions,
            few=await self._few(wanted),
            is_sqlite=is_sqlite,
            limit=limit,
            cursor=cursor,
        )
        wanted_ids = [hit.session_id for hit in hits.found]
        rows = await fetch(self._connection, SessionRow, select(SessionRow).where(col(SessionRow.id).in_(wanted_ids)))
        by_id = {row.id: row for row in rows}
        return [Found(by_id[hit.session_id], hit) for hit in hits.found if hit.session_id in by_id], hits.next_page

    async def _few(self, wanted: SessionFilter) -> list[str] | None:
        """The sessions that the filter leaves, if a short look at its index shows that they are few."""
        whose = (wanted.labels, wanted.agent_id, wanted.provider, wanted.model, wanted.forked_from)
        if not any((*whose, wanted.created_after, wanted.created_before)):
            return None
        statement, _ = self._filtered(wanted)
        columns = (col(SessionRow.id), col(SessionRow.message_count))
        rows = (await self._connection.execute(statement.with_only_columns(*columns).limit(FEW_SESSIONS + 1))).all()
        few = len(rows) <= FEW_SESSIONS and sum(row.message_count for row in rows) <= FEW_MESSAGES
        return [row.id for row in rows] if few else None

    def _filtered(self, wanted: SessionFilter) -> tuple[Select[Any], tuple[Any, Any] | None]:
        """All but for the statuses; and the columns that have the order, where it is not the table's own."""
        statement = select(SessionRow).where(*wanted.conditions())
        by = None
        if wanted.labels:
            first, *others = wanted.labels
            statement = statement.join(SessionLabelRow, col(SessionLabelRow.session_id) == col(SessionRow.id))
            statement = statement.where(*listed_under(self._workspace_id, first), *have(others))
            by = (SessionLabelRow.created_at, SessionLabelRow.session_id)
        elif wanted.agent_id is None:
            statement = statement.where(col(SessionRow.workspace_id) == self._workspace_id)
        if wanted.agent_id is not None:
            statement = statement.where(col(SessionRow.agent_id) == owned(AgentRow, wanted.agent_id, self._workspace_id))
        return statement, by


_MODEL = select(col(AgentVersionRow.config)["model"]["id"].as_string()).where(
    col(AgentVersionRow.agent_id) == bindparam("agent_id"), col(AgentVersionRow.version) == bindparam("version")
)


async def enter(connection: Connection, row: SessionRow) -> None:
    """Add a session's row, with all that it is found by but for what is said in it."""
    named = {"agent_id": row.agent_id, "version": row.agent_version}
    row.model = str((await connection.execute(_MODEL, named)).scalar_one())
    row.provider = row.model.partition(":")[0]
    await add(connection, row)
    if row.title is not None:
        await index_title(connection, row.id, row.title)
    if row.tags:
        await label(connection, row, "tag")
    if row.meta:
        await label(connection, row, "metadata")


async def is_archived(connection: Connection, session_id: str) -> bool:
    statement = select(col(SessionRow.archived_at)).where(col(SessionRow.id) == session_id)
    return (await connection.execute(statement)).scalar_one_or_none() is not None


_GET = select(SessionRow).where(
    col(SessionRow.id) == bindparam("session_id"),
    col(SessionRow.workspace_id) == bindparam("workspace_id"),
    col(SessionRow.hidden).is_(False),
)
_LOCK = _GET.with_for_update()


async def resources_mounted(connection: Connection, session_id: str, count: int) -> None:
    """The first so many files of the session are in its directory: nothing is pending unless more have come meanwhile."""
    statement = select(col(SessionRow.resources)).where(col(SessionRow.id) == session_id).with_for_update()
    found = (await connection.execute(statement)).scalar_one_or_none()
    if len(found or ()) == count:
        await connection.execute(update(SessionRow).where(col(SessionRow.id) == session_id).values(resources_pending=False))


def _over(keep: Keep) -> ColumnElement[bool]:
    """Of a session: that its time is over, and that nothing in it is under way or waits."""
    moment, at_work = now(), exists().where(col(RunRow.session_id) == col(SessionRow.id), unfinished())
    too_old: list[ColumnElement[bool]] = []
    if keep.idle is not None:
        too_old.append(col(SessionRow.updated_at) < moment - keep.idle)
    if keep.archived is not None:
        too_old.append(col(SessionRow.archived_at) < moment - keep.archived)
    return and_(
        or_(false(), *too_old),
        col(SessionRow.active_run_id).is_(None),
        ~col(SessionRow.hidden),
        ~at_work,
    )


async def expired_sessions(
    connection: Connection, keep: Keep, after: str, limit: int
) -> tuple[list[tuple[str, str]], str | None]:
    """Of the next so many sessions those that are not kept any longer, with their workspaces; and the id behind which to go on.

    For the worker only. So many of all, not of the expired: the database is not to look through everything at once.
    """
    page = select(col(SessionRow.id)).where(col(SessionRow.id) > after).order_by(col(SessionRow.id)).limit(limit)
    ids = list((await connection.execute(page)).scalars())
    expired = select(col(SessionRow.id), col(SessionRow.workspace_id)).where(col(SessionRow.id).in_(ids), _over(keep))
    found = [(row.id, row.workspace_id) for row in await connection.execute(expired)]
    return found, ids[-1] if len(ids) == limit else None


def _idle(before: datetime) -> tuple[ColumnElement[bool], ...]:
    return (col(SessionRow.updated_at) < before, col(SessionRow.active_run_id).is_(None))


async def idle_sessions(connection: Connection, session_ids: Sequence[str], before: datetime) -> tuple[list[str], list[str]]:
    """Those of the sessions that have been idle since before that time, and those that there are not."""
    rows = await connection.execute(
        select(col(SessionRow.id), and_(*_idle(before)).label("idle")).where(col(SessionRow.id).in_(session_ids))
    )
    known = {row.id: row.idle for row in rows}
    return [id for id, idle in known.items() if idle], [id for id in session_ids if id not in known]


async def expire_directory(connection: Connection, session_id: str, before: datetime) -> bool:
    """Whether the session is idle still, and its directory to be removed at once.

    Files that were given to it are to be put into its directory again if it goes on.
    """
    statement = update(SessionRow).where(col(SessionRow.id) == session_id, *_idle(before))
    given = col(SessionRow.resources).is_not(None)
    return (await connection.execute(statement.values(resources_pending=given))).rowcount == 1
