"""A run: one durable execution of an agent."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field, JsonValue

from domain.agents import Limits
from domain.usage import Cost, Usage


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"

    @property
    def over(self) -> bool:
        return self in FINISHED


FINISHED = frozenset({RunStatus.COMPLETED, RunStatus.FAILED, RunStatus.CANCELLED, RunStatus.TERMINATED})

WaitingFor = Literal["approval", "input", "event", "time", "tool_result"]
StopType = Literal[
    "end_turn",
    "requires_action",
    "interrupted",
    "budget_reached",
    "max_steps",
    "max_tokens",
    "max_duration",
    "retries_exhausted",
    "refusal",
    "error",
]


class StopReason(BaseModel, frozen=True):
    type: StopType
    event_ids: tuple[str, ...] | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of `requires_action`: the tool uses that wait for somebody."""


class RunError(BaseModel, frozen=True):
    code: str
    message: str
    retryable: bool = False


class AgentRef(BaseModel, frozen=True):
    id: str
    version: int
    name: str


class RunLinks(BaseModel, frozen=True):
    temporal: str | None
    """The run in Temporal's own Web UI."""
    stream: str


class Run(BaseModel, frozen=True):
    """A run as callers see it."""

    id: str
    type: Literal["run"] = "run"
    kind: Literal["turn", "task", "subagent"]
    session_id: str
    agent: AgentRef
    status: RunStatus
    waiting_for: WaitingFor | None
    stop_reason: StopReason | None
    output: str | None
    plan: list[JsonValue] | None = None
    """The agent's todo list: `{content, status}`."""
    error: RunError | None
    usage: Usage
    cost: Cost | None
    step_count: int
    limits: Limits
    attempt: int
    parent_run_id: str | None
    copied_from: str | None = None
    """Of a run in the copied part of a fork or an import: the run that it is a copy of. It never ran here, and used nothing."""
    batch_id: str | None = None
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue_seconds: float | None
    pause_requested_at: datetime | None
    paused_at: datetime | None
    cancel_requested_at: datetime | None
    workflow_id: str
    links: RunLinks
