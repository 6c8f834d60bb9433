"""Events of a busy session: what people do to the turn that runs and to those that wait."""

from typing import Literal, TypeAlias

from domain.payload import Payload, UserContent


class UserInterrupt(Payload):
    """Ends the running turn. `processed_at`: when it had ended."""

    type: Literal["user.interrupt"] = "user.interrupt"


class SessionSteer(Payload):
    """What becomes of a message to the running turn."""

    type: Literal["session.steer"] = "session.steer"
    event_id: str
    """The message. Where it is `deferred`, its system message is too."""
    status: Literal["accepted", "applied", "deferred"]
    """`applied`: a model call of this event's run reads it. `deferred`: the run that it was sent to ended first, and this
    event's run reads it."""


class QueueUpdated(Payload):
    """A message that waits for its turn was edited, moved or removed."""

    type: Literal["session.queue_updated"] = "session.queue_updated"
    event_id: str
    """The message."""
    content: tuple[UserContent, ...] | None = None
    """What it says now; None: as before."""
    position: int | None = None
    """Where it was moved to; 1 is next."""
    removed: bool = False


class SessionPaused(Payload):
    """Messages are queued, and no turn starts."""

    type: Literal["session.status_paused"] = "session.status_paused"


class SessionResumed(Payload):
    type: Literal["session.status_resumed"] = "session.status_resumed"


QueueEvent: TypeAlias = UserInterrupt | SessionSteer | QueueUpdated | SessionPaused | SessionResumed
