"""Closing the model call that a dead worker left open."""

from domain.clock import now
from domain.events import ModelRequestEnd, ModelRequestStart
from domain.runs import RunError
from domain.usage import Usage
from storage.database import Connection
from storage.journal import Draft, read

_WORKER_LOST = RunError(code="worker_lost", message="The worker was lost during the call.", retryable=True)


async def end_lost_call(connection: Connection, session_id: str, run_id: str) -> list[Draft]:
    """The end of the run's open model call, for viewers to drop the text that it had begun; nothing where none is open."""
    types = frozenset({"span.model_request_start", "span.model_request_end"})
    newest = await read(connection, session_id, run_id=run_id, types=types, descending=True, limit=1)
    return [
        Draft(
            ModelRequestEnd(
                model_request_start_id=start.id,
                is_error=True,
                model_usage=Usage(),
                duration_ms=round((now() - start.created_at).total_seconds() * 1000),
                attempt=start.payload.attempt,
                purpose=start.payload.purpose,
                error=_WORKER_LOST,
            )
        )
        for start in newest
        if isinstance(start.payload, ModelRequestStart)
    ]
