"""A session: a lasting conversation between people and agents."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from domain.usage import Cost, Usage

OnBusy = Literal["queue", "reject"]
"""What a message does that comes while a turn runs: wait for its own turn, or be refused with 409."""

SessionStatus = Literal["idle", "running", "rescheduling", "terminated"]


class LastMessage(BaseModel, frozen=True):
    role: Literal["user", "agent"]
    text: str
    """The first 200 characters."""
    created_at: datetime


class SessionStats(BaseModel, frozen=True):
    active_seconds: float
    duration_seconds: float


class SessionFigures(BaseModel, frozen=True):
    """What a session adds up to."""

    usage: Usage
    cost: Cost | None
    message_count: int
    last_message: LastMessage | None
