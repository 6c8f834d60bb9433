"""A session: a lasting conversation between people and agents."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field

OnBusy = Literal["queue", "steer", "interrupt", "reject"]
"""What a message does that comes while a turn runs: wait for its own turn; enter the running one at its next model call; end
it and be next; or be refused with 409."""

QUEUE_DEPTH = 20
MAX_QUEUE_DEPTH = 1000

SessionStatus = Literal["idle", "running", "rescheduling", "terminated"]


@dataclass(frozen=True)
class Keep:
    """How long sessions are kept: from their last activity on, and from when they were archived. None: for ever."""

    idle: timedelta | None = None
    archived: timedelta | None = None


Tag = Annotated[str, Field(min_length=1, max_length=50, pattern=r"^[^\s,\x00-\x1f\x7f]+( [^\s,\x00-\x1f\x7f]+)*$")]
"""Words with single spaces between them, and no commas."""

Tags = Annotated[tuple[Tag, ...], Field(max_length=20)]
