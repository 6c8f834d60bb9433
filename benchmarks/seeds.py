"""Data that would take hours to make through the front door, put into the tables of a running service."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import insert, text
from sqlmodel import SQLModel

from benchmarks.service import Perdure
from domain.agents import AgentConfig, ModelConfig
from domain.clock import now
from domain.events import (
    AgentMessage,
    AgentThinking,
    Event,
    ModelRequestEnd,
    ModelRequestStart,
    RunCompleted,
    RunQueued,
    RunStarted,
    SessionIdle,
    SessionRunning,
    TextContent,
    UserMessage,
)
from domain.ids import new_id
from domain.runs import RunStatus, StopReason
from domain.usage import Usage
from storage.database import Database, Transaction
from storage.journal import Draft, Journal
from storage.keys import DEFAULT_WORKSPACE
from storage.rows import add
from storage.sessions import Sessions
from storage.tables import AgentRow, AgentVersionRow, EventRow, RunRow, SessionRow

TURN_EVENTS = 10
WORDS = "All work and no play makes a long page. " * 5
MODEL = "demo:echo"
"""A model that answers at once."""
SAME = 100
"""Runs that every database begins with, the oldest of all: what the filters look for."""
SESSION_RUNS = 4
AGENT_SESSIONS = 25
PIECE = 2_000
_END_TURN = StopReason(type="end_turn")
_SAID = (TextContent(text=WORDS),)
_COMPLETED = [RunStatus.COMPLETED] * SESSION_RUNS


@asynccontextmanager
async def tables_of(service: Perdure) -> AsyncGenerator[Database]:
    """The database of a running service."""

    def announce(session_id: str, events: Sequence[Event]) -> None:
        """Nobody watches what is put there."""

    database = Database(service.database, announce)
    try:
        yield database
    finally:
        await database.close()


async def long_session(database: Database, agent_id: str, events: int) -> str:
    """A session of as many past turns as make that many events, told to the journal as the product tells them; its id."""
    async with database.write() as transaction:
        session = await Sessions(transaction.connection, DEFAULT_WORKSPACE).create(agent_id, 1)
    for turns in _pieces(events // TURN_EVENTS, 50):
        async with database.write() as transaction:
            for _ in range(turns):
                await _turn(transaction, session)
    return session.id


async def _turn(transaction: Transaction, session: SessionRow) -> None:
    run = _run(session, now(), RunStatus.QUEUED)
    await add(transaction.connection, run)
    journal = Journal(transaction.connection, transaction.appended)
    start = Draft(ModelRequestStart(model=MODEL, attempt=1))
    end = ModelRequestEnd(model_request_start_id=start.id, model_usage=Usage(), duration_ms=1, attempt=1)
    for drafts in (
        [Draft(UserMessage(content=_SAID)), Draft(RunQueued())],
        [Draft(RunStarted()), Draft(SessionRunning()), start],
        [Draft(AgentThinking(text=WORDS)), Draft(AgentMessage(content=_SAID)), Draft(end)],
        [Draft(SessionIdle(stop_reason=_END_TURN)), Draft(RunCompleted(stop_reason=_END_TURN))],
    ):
        await journal.append(session.id, run.id, drafts)


@dataclass(frozen=True)
class Seeded:
    """What is the same in every database, however many runs there are: one of each, to be asked for."""

    agent_id: str
    agent_name: str
    session_id: str
    run_id: str
    first: datetime
    """When the first run was created."""
    middle: datetime
    """Half of all runs were created later."""


async def many_runs(database: Database, runs: int) -> Seeded:
    """`SAME` old runs, some of them waiting and some failed; then completed runs of other agents, up to `runs`."""
    begin = now() - timedelta(seconds=runs + 60)
    agents: list[str] = []
    sessions: list[_Session] = []
    for number, size in enumerate(_pieces(runs, SESSION_RUNS)):
        old = number < SAME // SESSION_RUNS
        if old or number % AGENT_SESSIONS == 0:
            agents.append(new_id("agent"))
        sessions.append(_Session(agents[-1], size, begin + timedelta(seconds=number * SESSION_RUNS), old))
    config = AgentConfig(name="seeded", model=ModelConfig(id=MODEL)).model_dump(mode="json")
    await _insert(database, AgentRow, [_agent(agent_id, number, begin) for number, agent_id in enumerate(agents)])
    versions = [AgentVersionRow(agent_id=agent_id, version=1, config=config, created_at=begin) for agent_id in agents]
    await _insert(database, AgentVersionRow, versions)
    for place in range(0, len(sessions), PIECE):
        piece = sessions[place : place + PIECE]
        await _insert(database, SessionRow, [session.row for session in piece])
        await _insert(database, RunRow, [run for session in piece for run in session.runs])
        await _insert(database, EventRow, [event for session in piece for event in session.events()])
    if not database.is_sqlite:
        async with database.write() as transaction:
            await transaction.connection.execute(text("ANALYZE"))  # as its own daemon does within a minute
    first = sessions[0]
    return Seeded(agents[0], "agent 0", first.row.id, first.runs[0].id, begin, begin + timedelta(seconds=runs / 2))


class _Session:
    """A session with its runs. An old one has every kind of run, and its last run waits; a new one has completed runs."""

    def __init__(self, agent_id: str, runs: int, begin: datetime, old: bool) -> None:
        self._old = old
        self.row = SessionRow(
            id=new_id("sesn"),
            workspace_id=DEFAULT_WORKSPACE,
            agent_id=agent_id,
            agent_version=1,
            status="running" if old else "idle",
            meta={},
            created_at=begin,
            updated_at=begin,
        )
        statuses = [RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.WAITING] if old else _COMPLETED
        moments = [begin + timedelta(seconds=number) for number in range(runs)]
        self.runs = [_run(self.row, moment, status) for moment, status in zip(moments, statuses, strict=False)]
        if old:
            self.row.active_run_id = self.runs[-1].id

    def events(self) -> Iterator[Mapping[str, Any]]:
        said = (UserMessage(content=_SAID), AgentMessage(content=_SAID), RunCompleted(stop_reason=_END_TURN))
        payloads = [(payload.type, payload.model_dump(mode="json")) for payload in said]
        for run in self.runs:
            for type, payload in payloads * (5 if self._old else 1):
                self.row.last_seq += 1
                yield {
                    "session_id": self.row.id,
                    "seq": self.row.last_seq,
                    "id": new_id("sevt"),
                    "run_id": run.id,
                    "type": type,
                    "append_index": 0,
                    "created_at": run.created_at,
                    "processed_at": run.created_at,
                    "payload": payload,
                }


def _agent(id: str, number: int, moment: datetime) -> AgentRow:
    created = moment + timedelta(seconds=number)
    return AgentRow(
        id=id, workspace_id=DEFAULT_WORKSPACE, name=f"agent {number}", version=1, created_at=created, updated_at=created
    )


def _run(session: SessionRow, moment: datetime, status: RunStatus) -> RunRow:
    return RunRow(
        id=new_id("run"),
        workspace_id=DEFAULT_WORKSPACE,
        session_id=session.id,
        kind="turn",
        agent_id=session.agent_id,
        agent_version=1,
        agent_name="seeded",
        model=MODEL,
        status=status,
        limits={},
        meta={},
        created_at=moment,
        touched_at=moment,
    )


async def _insert(database: Database, row: type[SQLModel], rows: Sequence[SQLModel | Mapping[str, Any]]) -> None:
    async with database.write() as transaction:
        values = [row.model_dump() if isinstance(row, SQLModel) else dict(row) for row in rows]
        await transaction.connection.execute(insert(row), values)


def _pieces(whole: int, size: int) -> Iterator[int]:
    """`whole` in pieces of `size`, the last one smaller."""
    for begin in range(0, whole, size):
        yield min(size, whole - begin)
