"""What each event changes on the run's and the session's row. Applied by the journal in the event's own transaction."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import case, literal
from sqlmodel import col

from domain import events
from domain.clock import wire
from domain.runs import RunStatus
from domain.transcript import plain
from domain.usage import Usage
from storage.tables import RunRow, SessionRow, UsageColumns

LAST_MESSAGE_CHARS = 200


@dataclass
class Changes:
    """Columns to set; values may be SQL expressions."""

    session: dict[str, Any] = field(default_factory=dict[str, Any])
    run: dict[str, Any] = field(default_factory=dict[str, Any])


def project(payload: events.EventPayload, moment: datetime, changes: Changes) -> None:
    """Add to `changes` what this event means for the rows."""
    run, session = changes.run, changes.session
    match payload:
        case events.UserMessage(content=content):
            _message(session, "user", plain(content), moment)
        case events.AgentMessage(content=content):
            text = plain(content)
            _message(session, "agent", text, moment)
            run["output"] = text.replace("\x00", "")  # which Postgres cannot store in a text
        case events.RunQueued(attempt=attempt):
            run |= {"status": RunStatus.QUEUED, "attempt": attempt, "finished_at": None, "error": None, "stop_type": None}
        case events.RunStarted():
            run |= {"status": RunStatus.RUNNING, "started_at": moment}
        case events.SessionRunning():
            session["status"] = "running"
        case events.ModelRequestStart():
            session["status"] = "running"
            run["error"] = None  # what held it up holds no more
        case events.SessionRescheduled():
            session["status"] = "rescheduling"
        case events.SessionIdle():
            session["status"] = "idle"
        case events.AgentQuestion():
            run |= {"status": RunStatus.WAITING, "waiting_for": "input"}
        case events.RunPaused():
            run |= {"status": RunStatus.PAUSED, "paused_at": moment}
        case events.RunResumed():
            run |= {"status": RunStatus.RUNNING, "paused_at": None, "pause_requested_at": None, "pause_mode": None}
            run["resume_requested_at"] = None
        case events.ModelRequestEnd(model_usage=usage, is_error=is_error) if not is_error or usage.output_tokens:
            _add_usage(run, RunRow, usage, payload)
            _add_usage(session, SessionRow, usage, payload)
            run["step_count"] = RunRow.step_count + 1
        case events.RunCompleted(stop_reason=reason):
            _over(run, RunStatus.COMPLETED, reason.type, moment)
        case events.RunFailed(stop_reason=reason, error=error):
            _over(run, RunStatus.FAILED, reason.type, moment)
            run["error"] = error.model_dump(mode="json")
        case events.RunCancelled():
            _over(run, RunStatus.CANCELLED, "interrupted", moment)
        case events.RunTerminated():
            _over(run, RunStatus.TERMINATED, "interrupted", moment)
        case _:
            pass


def _message(session: dict[str, Any], role: str, text: str, moment: datetime) -> None:
    session["message_count"] = session.get("message_count", SessionRow.message_count) + 1
    session["last_message"] = {"role": role, "text": text[:LAST_MESSAGE_CHARS], "created_at": wire(moment)}


def _add_usage(columns: dict[str, Any], row: type[UsageColumns], usage: Usage, end: events.ModelRequestEnd) -> None:
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        if amount := getattr(usage, name):
            columns[name] = getattr(row, name) + amount
    if usage.estimated:
        columns["usage_estimated"] = True
    cost = None if end.cost is None else end.cost.nano_usd
    # Null plus anything is null: one call of unknown price makes the sum unknown, and no zero is ever shown for it.
    before = case((col(row.model_call_count) == 0, literal(0)), else_=col(row.cost_nano_usd))
    columns["cost_nano_usd"] = None if cost is None else before + cost
    columns["model_call_count"] = row.model_call_count + 1


def _over(run: dict[str, Any], status: RunStatus, stop_type: str, moment: datetime) -> None:
    run |= {"status": status, "stop_type": stop_type, "finished_at": moment, "waiting_for": None, "error": None}
