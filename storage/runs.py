"""Runs: rows, and the two ends of a run's life in its session."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, bindparam, exists, func, literal, or_, select, text, update
from sqlalchemy.orm import aliased
from sqlmodel import col

from domain.clock import now
from domain.errors import NotFound
from domain.multiagent import run_of_thread
from domain.runs import FINISHED, RunStatus
from storage.batch_tables import BatchRow
from storage.database import Connection
from storage.rows import Page, fetch, fetch_one, fetch_only, owned, page
from storage.tables import ASKED, AgentRow, RunRow, SessionRow


@dataclass(frozen=True)
class RunFilter:
    status: Sequence[RunStatus] = ()
    agent_id: str | None = None
    session_id: str | None = None
    parent_run_id: str | None = None
    subagents: bool = False
    """Only runs of sub-agents."""
    created_after: datetime | None = None
    created_before: datetime | None = None
    batch_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    primary: bool = False
    """Only turns and tasks, no sub-agents."""


@dataclass(frozen=True)
class Active:
    """A session and the run that it names as active; `status` is None when there is no such run."""

    session_id: str
    run_id: str
    status: str | None
    touched_at: datetime | None
    workflow_seen_at: datetime | None


class Standing(NamedTuple):
    """What a model call needs to know of its run."""

    status: str
    agent_id: str
    agent_version: int
    model: str
    thread_id: str | None


class Place(NamedTuple):
    """What decides about a run's tool uses beside its agent."""

    workspace_id: str
    session_id: str
    run_id: str
    thread_id: str | None
    kind: str
    """Of the session's active run: a sub-agent is watched as much as the run that it works for."""
    permissions: Mapping[str, str]


def matching(workspace_id: str, wanted: RunFilter) -> Select[Any]:
    """The workspace's runs for which all but the status is so. Each filter finds its own index."""
    found = select(RunRow)
    if wanted.agent_id is not None:
        found = found.where(col(RunRow.agent_id) == owned(AgentRow, wanted.agent_id, workspace_id))
    if wanted.session_id is not None:
        found = found.where(col(RunRow.session_id) == owned(SessionRow, wanted.session_id, workspace_id))
    if wanted.batch_id is not None:
        found = found.where(col(RunRow.batch_id) == owned(BatchRow, wanted.batch_id, workspace_id))
    if wanted.agent_id is None and wanted.session_id is None and wanted.batch_id is None:
        found = found.where(col(RunRow.workspace_id) == workspace_id)
    if wanted.session_id is None and wanted.parent_run_id is None:
        # What was copied into a fork did not run a second time: who counts runs must not find it twice.
        found = found.where(col(RunRow.copied_from).is_(None))
    if wanted.parent_run_id is not None:
        found = found.where(col(RunRow.parent_run_id) == wanted.parent_run_id)
    if wanted.subagents:
        found = found.where(col(RunRow.thread_id).is_not(None))
    if wanted.primary:
        found = found.where(col(RunRow.thread_id).is_(None))
    if wanted.created_after is not None:
        found = found.where(col(RunRow.created_at) > wanted.created_after)
    if wanted.created_before is not None:
        found = found.where(col(RunRow.created_at) < wanted.created_before)
    for name, value in wanted.metadata.items():
        found = found.where(col(RunRow.meta)[name].as_string() == value)
    return found


def unfinished() -> ColumnElement[bool]:
    """That a run is not over. Spelled out: a list would be expanded anew at every execution."""
    return and_(*(col(RunRow.status) != status.value for status in RunStatus if status.over))


class Runs:
    """All SQL on runs but for what the journal's projections write."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, run_id: str, workspace_id: str | None = None, *, lock: bool = False) -> RunRow:
        """The run's row. Raises NotFound, also when it is another workspace's. `workspace_id` None is for the worker only."""
        if lock:
            # Always the session's row first, as the journal does: two orders would be a deadlock.
            await self._connection.execute(_LOCK_ITS_SESSION, {"run_id": run_id})
        mine = {"run_id": run_id} if workspace_id is None else {"run_id": run_id, "workspace_id": workspace_id}
        statement = _GET if workspace_id is None else _GET_MINE
        found = await fetch_only(self._connection, RunRow, statement[lock], mine)
        if found is None:
            raise NotFound(f"No run {run_id}.")
        return found

    async def standing(self, run_id: str) -> Standing:
        """Raises NotFound."""
        found = (await self._connection.execute(_STANDING, {"run_id": run_id})).one_or_none()
        if found is None:
            raise NotFound(f"No run {run_id}.")
        return Standing(*found)

    async def told(self, run_id: str, answered_at: datetime | None) -> None:
        """The workflow knows of everything that was answered until then."""
        mine = (col(RunRow.id) == run_id, col(RunRow.answered_at) == answered_at)
        await self._connection.execute(update(RunRow).where(*mine).values(answered_at=None))

    async def place(self, run_id: str) -> Place:
        """Raises NotFound."""
        found = (await self._connection.execute(_PLACE, {"run_id": run_id})).one_or_none()
        if found is None:
            raise NotFound(f"No run {run_id}.")
        return Place(*found)

    async def find(
        self, workspace_id: str, wanted: RunFilter, *, limit: int, cursor: str | None, descending: bool
    ) -> Page[RunRow]:
        return await page(
            self._connection,
            RunRow,
            matching(workspace_id, wanted),
            at=RunRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=RunRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
            one_of=[col(RunRow.status) == status for status in dict.fromkeys(wanted.status)],
        )

    async def change(self, run_id: str, **columns: Any) -> None:
        """Set columns that no event implies, such as when a command was asked for."""
        await self._connection.execute(update(RunRow).where(col(RunRow.id) == run_id).values(touched_at=now(), **columns))

    async def newest_in(self, session_id: str) -> str | None:
        statement = (
            select(col(RunRow.id))
            .where(col(RunRow.session_id) == session_id, col(RunRow.thread_id).is_(None))
            .order_by(col(RunRow.created_at).desc(), col(RunRow.id).desc())
            .limit(1)
        )
        return (await self._connection.execute(statement)).scalar_one_or_none()

    async def gone_on(self, row: RunRow) -> bool:
        """Whether the session has done anything since that run of it was over: the newest need not be the last one."""
        since = or_(col(RunRow.started_at) >= (row.finished_at or now()), col(RunRow.id) == col(SessionRow.active_run_id))
        statement = (
            select(col(RunRow.id))
            .join(SessionRow, col(SessionRow.id) == col(RunRow.session_id))
            .where(col(RunRow.session_id) == row.session_id, col(RunRow.thread_id).is_(None), since)
            .limit(1)
        )
        return (await self._connection.execute(statement)).first() is not None

    async def add_active_time(self, session_id: str, time: timedelta) -> None:
        """Add a finished run's time to what its session has worked."""
        await self._connection.execute(_ADD_TIME, {"in_session": session_id, "more": time.total_seconds()})

    async def unstarted(self, before: datetime, after: RunRow | None, limit: int) -> list[RunRow]:
        """A page of the active runs that were queued before that time and whose workflow nobody has made sure of."""
        statement = select(RunRow).where(
            col(RunRow.status) == RunStatus.QUEUED,
            col(RunRow.touched_at) < before,
            col(RunRow.workflow_seen_at).is_(None),
            col(RunRow.cancel_requested_at).is_(None),
            col(RunRow.terminate_requested_at).is_(None),
            _its_session(col(SessionRow.active_run_id) == col(RunRow.id)),
        )
        return await self._touched_page(statement, after, limit)

    async def asked(self, before: datetime, after: RunRow | None, limit: int) -> list[RunRow]:
        """A page of the active runs that were asked for something before that time and have not done it."""
        pending = (
            col(RunRow.cancel_requested_at) < before,
            col(RunRow.terminate_requested_at) < before,
            col(RunRow.answered_at) < before,
            and_(col(RunRow.pause_requested_at) < before, col(RunRow.paused_at).is_(None)),
            and_(col(RunRow.resume_requested_at) < before, col(RunRow.paused_at).is_not(None)),
        )
        active = _its_session(col(SessionRow.active_run_id) == col(RunRow.id))
        statement = select(RunRow).where(text(ASKED), or_(*pending), or_(active, col(RunRow.parent_run_id).is_not(None)))
        return await self._touched_page(statement, after, limit)

    async def _touched_page(self, statement: Select[Any], after: RunRow | None, limit: int) -> list[RunRow]:
        at, id = col(RunRow.touched_at), col(RunRow.id)
        if after is not None:
            statement = statement.where(
                at >= after.touched_at, or_(at > after.touched_at, and_(at == after.touched_at, id > after.id))
            )
        return await fetch(self._connection, RunRow, statement.order_by(at, id).limit(limit))

    async def workflows_seen(self, run_ids: Sequence[str]) -> None:
        """The workflows of these queued runs exist: nobody need start them."""
        statement = update(RunRow).where(col(RunRow.id).in_(run_ids), col(RunRow.status) == RunStatus.QUEUED)
        await self._connection.execute(statement.values(workflow_seen_at=now()))

    async def active(self, after: str, limit: int) -> list[Active]:
        """A page of the sessions that are at work, by the id of the run that they name."""
        named = col(SessionRow.active_run_id)
        statement = (
            select(col(SessionRow.id), named, col(RunRow.status), col(RunRow.touched_at), col(RunRow.workflow_seen_at))
            .outerjoin(RunRow, col(RunRow.id) == named)
            .where(named > after)
            .order_by(named)
            .limit(limit)
        )
        return [Active(*row) for row in await self._connection.execute(statement)]

    async def headless_sessions(self, before: datetime, limit: int) -> list[str]:
        """Sessions without an active run that are not paused, in which a turn has been queued since before that time."""
        statement = (
            select(col(RunRow.session_id))
            .where(
                col(RunRow.status) == RunStatus.QUEUED,
                col(RunRow.touched_at) < before,
                col(RunRow.thread_id).is_(None),
                _its_session(and_(col(SessionRow.active_run_id).is_(None), col(SessionRow.paused).is_(False))),
            )
            .limit(limit)
        )
        return list(dict.fromkeys((await self._connection.execute(statement)).scalars()))

    async def on_thread(self, session_id: str, thread_id: str) -> RunRow:
        """The run of a sub-agent's thread. Raises NotFound, also for a thread of another session."""
        mine = (col(RunRow.id) == run_of_thread(thread_id), col(RunRow.session_id) == session_id)
        statement = select(RunRow).where(*mine, col(RunRow.thread_id) == thread_id)
        found = await fetch_one(self._connection, RunRow, statement)
        if found is None:
            raise NotFound(f"No thread {thread_id}.")
        return found

    async def on_primary(self, run_ids: Iterable[str | None]) -> set[str]:
        """Those of the runs that are on their session's primary thread."""
        mine = (col(RunRow.id).in_({id for id in run_ids if id is not None}), col(RunRow.thread_id).is_(None))
        return set((await self._connection.execute(select(col(RunRow.id)).where(*mine))).scalars())

    async def below(self, run_id: str) -> list[RunRow]:
        """The sub-agents that a run and its sub-agents have started and that are not over, the deepest last."""
        tree = select(col(RunRow.id), literal(1).label("depth")).where(col(RunRow.parent_run_id) == run_id).cte(recursive=True)
        deeper = select(col(RunRow.id), tree.c.depth + 1).where(col(RunRow.parent_run_id) == tree.c.id)
        tree = tree.union_all(deeper)
        statement = select(RunRow).join(tree, tree.c.id == col(RunRow.id)).where(unfinished())
        return await fetch(self._connection, RunRow, statement.order_by(tree.c.depth, col(RunRow.id)))

    async def used_by(self, run_id: str) -> tuple[int, int]:
        """Output tokens and billionths of a dollar of a run and of all sub-agents below it."""
        tree = select(col(RunRow.id)).where(col(RunRow.id) == run_id).cte(recursive=True)
        tree = tree.union_all(select(col(RunRow.id)).where(col(RunRow.parent_run_id) == tree.c.id))
        tokens = func.sum(col(RunRow.output_tokens)).label("tokens")
        cost = func.sum(func.coalesce(col(RunRow.cost_nano_usd), 0)).label("cost")
        found = await self._connection.execute(select(tokens, cost).join(tree, tree.c.id == col(RunRow.id)))
        used = found.mappings().one()
        return int(used["tokens"] or 0), int(used["cost"] or 0)

    async def agents_in(self, session_id: str) -> list[tuple[str, int]]:
        """The agents, at their versions, whose runs a session has."""
        pins = select(col(RunRow.agent_id), col(RunRow.agent_version)).where(col(RunRow.session_id) == session_id)
        return [(row.agent_id, row.agent_version) for row in await self._connection.execute(pins.distinct())]

    async def not_over(self, run_ids: Sequence[str]) -> list[RunRow]:
        """Those of the runs that our rows do not show as finished."""
        statement = select(RunRow).where(col(RunRow.id).in_(run_ids), unfinished())
        return await fetch(self._connection, RunRow, statement)


def _its_session(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """Of a run: that its session is so. Not a join, which planners like to begin with all sessions."""
    return exists().where(col(SessionRow.id) == col(RunRow.session_id), condition)


_ONE = select(RunRow).where(col(RunRow.id) == bindparam("run_id"))
_ONE_OF_MINE = _ONE.where(col(RunRow.workspace_id) == bindparam("workspace_id"))
_GET, _GET_MINE = (_ONE, _ONE.with_for_update()), (_ONE_OF_MINE, _ONE_OF_MINE.with_for_update())
_LOCK_ITS_SESSION = (
    select(col(SessionRow.id))
    .where(col(SessionRow.id) == select(col(RunRow.session_id)).where(col(RunRow.id) == bindparam("run_id")).scalar_subquery())
    .with_for_update()
)
_ADD_TIME = (
    update(SessionRow)
    .where(col(SessionRow.id) == bindparam("in_session"))
    .values(active_seconds=col(SessionRow.active_seconds) + bindparam("more"))
)
_FINISHED = [status.value for status in FINISHED]
_ROOT = aliased(RunRow)
_PLACE = (
    select(
        col(RunRow.workspace_id),
        col(RunRow.session_id),
        col(RunRow.id),
        col(RunRow.thread_id),
        func.coalesce(col(_ROOT.kind), col(RunRow.kind)),
        col(SessionRow.permissions),
    )
    .join(SessionRow, col(SessionRow.id) == col(RunRow.session_id))
    .outerjoin(_ROOT, col(_ROOT.id) == col(SessionRow.active_run_id))
    .where(col(RunRow.id) == bindparam("run_id"))
)
_STANDING = select(
    col(RunRow.status), col(RunRow.agent_id), col(RunRow.agent_version), col(RunRow.model), col(RunRow.thread_id)
).where(col(RunRow.id) == bindparam("run_id"))
