"""A session: a lasting conversation between people and agents."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

OnBusy = Literal["queue", "reject"]
"""What a message does that comes while a turn runs: wait for its own turn, or be refused with 409."""

SessionStatus = Literal["idle", "running", "rescheduling", "terminated"]


@dataclass(frozen=True)
class Keep:
    """How long sessions are kept: from their last activity on, and from when they were archived. None: for ever."""

    idle: timedelta | None = None
    archived: timedelta | None = None
