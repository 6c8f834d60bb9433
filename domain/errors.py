"""Everything Perdure raises on purpose.

PerdureError
├── Invalid                 what the caller sent cannot be used            422
│   ├── MalformedCursor     a page or stream cursor is not one of ours     400
│   └── UnknownSecret       no secret of that name is configured           422
├── Unauthenticated         no key, or a wrong one                         401
│   └── TokenExpired        it was a good client token, until it expired   401
├── Forbidden               the key lacks a scope                          403
├── NotFound                no such thing in this workspace                404
├── Conflict                true, but not now                              409
│   ├── RunFinished  SessionBusy  VersionConflict  Archived  ApprovalDecided  AlreadyAnswered  AlreadyStarted
│   ├── IdempotencyInFlight
├── QueueFull               as many messages wait as may                   429
├── TooLarge                the body is over the limit                     413
├── RangeNotSatisfiable     a download has not that many bytes             416
├── IdempotencyKeyReused    same key, other body                           422
├── Unavailable             a part that the answer needs is not reachable  503
│   ├── DatabaseAway        the database does not answer, it may come back
│   └── CopyTooSlow         a log takes longer to copy than a request may take
├── ProviderError           a model call failed; says whether to try again
│   ├── ProviderAuth  ProviderRejected  ProviderNotConfigured              never retried
│   │                 └── ContextExceeded    longer than the model takes
│   └── ProviderUnavailable  ProviderRateLimited  ProviderStalled  ProviderTruncated   retried
└── ToolFailed              a tool's answer to the model is an error
"""

from typing import ClassVar

from pydantic import BaseModel


class Pointer(BaseModel, frozen=True):
    """One fault in a request body: a JSON pointer and what is wrong there."""

    pointer: str
    detail: str


class PerdureError(Exception):
    """`code` is stable and machine-readable, `message` says what to do."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Invalid(PerdureError):
    code, status, title = "invalid_request", 422, "Invalid request"

    def __init__(self, message: str, *faults: Pointer) -> None:
        super().__init__(message)
        self.faults = faults


class MalformedCursor(PerdureError):
    code, status, title = "malformed_cursor", 400, "Malformed cursor"


class UnknownSecret(Invalid):
    code, title = "unknown_secret", "No such secret"


class BadRequest(PerdureError):
    code, status, title = "bad_request", 400, "Bad request"


class Unauthenticated(PerdureError):
    code, status, title = "unauthenticated", 401, "Not authenticated"


class TokenExpired(Unauthenticated):
    code, title = "token_expired", "The token has expired"


class Forbidden(PerdureError):
    code, status, title = "forbidden", 403, "Forbidden"


class NotFound(PerdureError):
    code, status, title = "not_found", 404, "Not found"


class Conflict(PerdureError):
    code, status, title = "conflict", 409, "Conflict"


class RunFinished(Conflict):
    code, title = "run_finished", "The run is over"


class SessionBusy(Conflict):
    """`run` is the one that is at work."""

    code, title = "session_busy", "The session is busy"

    def __init__(self, message: str, run: BaseModel) -> None:
        super().__init__(message)
        self.run = run


class VersionConflict(Conflict):
    code, title = "version_conflict", "The version is not the newest"


class Archived(Conflict):
    code, title = "archived", "Archived"


class ApprovalDecided(Conflict):
    """`winner` is the approval as it was decided."""

    code, title = "approval_decided", "The approval is decided"

    def __init__(self, message: str, winner: BaseModel) -> None:
        super().__init__(message)
        self.winner = winner


class AlreadyAnswered(Conflict):
    code, title = "already_answered", "It was answered"


class AlreadyStarted(Conflict):
    code, title = "already_started", "It waits no more"


class IdempotencyInFlight(Conflict):
    code, title, retryable = "idempotency_in_flight", "The first request with this key is still running", True


class QueueFull(PerdureError):
    code, status, title, retryable = "queue_full", 429, "The queue is full", True


class TooLarge(PerdureError):
    code, status, title = "too_large", 413, "Too large"


class RangeNotSatisfiable(PerdureError):
    code, status, title = "range_not_satisfiable", 416, "Range not satisfiable"


class IdempotencyKeyReused(PerdureError):
    code, status, title = "idempotency_key_reused", 422, "The idempotency key was used for another body"


class Unavailable(PerdureError):
    code, status, title, retryable = "unavailable", 503, "Not available now", True


class DatabaseAway(Unavailable):
    """It is being started, or somebody else holds it: waiting may help."""


class CopyTooSlow(Unavailable):
    """Nothing was written."""

    code, title = "copy_too_slow", "Copying the log takes too long"


class ProviderError(PerdureError):
    """A model call failed. `retry_after_seconds` is what the vendor asked for, if it did."""

    code, status, title = "provider_error", 502, "The model provider failed"

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class ProviderAuth(ProviderError):
    code = "provider_auth"


class ProviderRejected(ProviderError):
    code = "provider_rejected"


class ContextExceeded(ProviderRejected):
    """The request is longer than the model takes."""

    code = "context_exceeded"


class ProviderNotConfigured(ProviderError):
    code = "provider_not_configured"


class ProviderUnavailable(ProviderError):
    code, retryable = "provider_unavailable", True


class ProviderRateLimited(ProviderError):
    code, retryable = "provider_rate_limited", True


class ProviderStalled(ProviderError):
    code, retryable = "provider_stalled", True


class ProviderTruncated(ProviderError):
    """The stream ended without a stop reason: half a message must never pass for a whole one."""

    code, retryable = "provider_truncated", True


class ToolFailed(PerdureError):
    """Raised by a tool: the message becomes an error result that the model reads."""

    code = "tool_failed"
