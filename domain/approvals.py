"""Approvals: a tool call that a person is asked about first."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, JsonValue

from domain.agents import OnTimeout


class ApprovalStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Decision(BaseModel, frozen=True):
    approve: bool
    reason: str | None = None
    """For the model to read, of a denial."""
    edited_input: dict[str, JsonValue] | None = None
    """Arguments in place of those that were asked about."""
    remember: bool = False
    """Decide every further call of this tool in the session so."""
    decided_by: str | None = None
    """The id of an API key; None: it came through Temporal."""


class Approval(BaseModel, frozen=True):
    """An approval as callers see it."""

    id: str
    type: Literal["approval"] = "approval"
    status: ApprovalStatus
    session_id: str
    run_id: str
    session_thread_id: str | None = None
    """The sub-agent's thread, where it is one's."""
    tool_use_id: str
    tool_name: str
    input: dict[str, JsonValue]
    edited_input: dict[str, JsonValue] | None
    reason: str | None
    remembered: bool
    decided_by: str | None
    on_timeout: OnTimeout
    expires_at: datetime | None
    created_at: datetime
    decided_at: datetime | None
