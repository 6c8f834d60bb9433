"""What each event changes on the run's and the session's row. Applied by the journal in the event's own transaction."""

from datetime import datetime

from domain import events, queue_events
from domain.clock import wire
from domain.runs import RunStatus
from domain.session_events import TitleSuggested
from domain.transcript import plain
from domain.usage import Cost, Usage
from storage.changes import Changes

LAST_MESSAGE_CHARS = 200


def project(payload: events.EventPayload, moment: datetime, on_run: Changes, on_session: Changes) -> None:
    """Add to the changes what this event means for the rows."""
    run, session = on_run.set, on_session.set
    match payload:
        case events.UserMessage(content=content):
            _message(on_session, "user", plain(content), moment)
        case events.AgentMessage(content=content):
            text = plain(content)
            _message(on_session, "agent", text, moment)
            run["output"] = text.replace("\x00", "")  # which Postgres cannot store in a text
        case events.RunQueued(attempt=attempt):
            run |= {"status": RunStatus.QUEUED, "attempt": attempt, "finished_at": None, "error": None, "stop_type": None}
        case events.RunStarted():
            run |= {"status": RunStatus.RUNNING, "started_at": moment}
        case events.SessionRunning():
            session["status"] = "running"
        case events.ModelRequestStart():
            session["status"] = "running"
            # What held it up holds no more; every answer and every resume was taken up.
            run |= {"error": None, "answered_at": None, "resume_requested_at": None}
        case events.SessionRescheduled():
            session["status"] = "rescheduling"
        case events.SessionIdle():
            session["status"] = "idle"
        case queue_events.SessionPaused():
            session["paused"] = True
        case queue_events.SessionResumed():
            session["paused"] = False
        case events.AgentPlan(items=items):
            run["plan"] = [item.model_dump(mode="json") for item in items]
        case events.RunPaused(stop_reason=limit):
            run |= {"status": RunStatus.PAUSED, "paused_at": moment}
            if limit is not None:
                run["resume_requested_at"] = None  # it was of another pause
        case events.RunResumed():
            run |= {"status": RunStatus.RUNNING, "paused_at": None, "pause_requested_at": None, "pause_mode": None}
            run["resume_requested_at"] = None
        case events.ModelRequestEnd(model_usage=usage, is_error=is_error) if not is_error or usage.output_tokens:
            _add_usage(on_run, usage, payload.cost)
            _add_usage(on_session, usage, payload.cost)
            on_run.plus("step_count", int(payload.purpose is None))
        case TitleSuggested(model_usage=usage, cost=cost):
            _add_usage(on_session, usage, cost)
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


def _message(session: Changes, role: str, text: str, moment: datetime) -> None:
    session.plus("message_count", 1)
    session.set["last_message"] = {"role": role, "text": text[:LAST_MESSAGE_CHARS], "created_at": wire(moment)}


def _add_usage(changes: Changes, usage: Usage, cost: Cost | None) -> None:
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
        changes.plus(name, getattr(usage, name))
    if usage.estimated:
        changes.set["usage_estimated"] = True
    if cost is None:
        changes.set["cost_nano_usd"] = None
    else:
        changes.plus("cost_nano_usd", cost.nano_usd)
    changes.plus("model_call_count", 1)


def _over(run: dict[str, object], status: RunStatus, stop_type: str, moment: datetime) -> None:
    run |= {"status": status, "stop_type": stop_type, "finished_at": moment, "waiting_for": None, "error": None}
