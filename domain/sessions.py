"""A session: a lasting conversation between people and agents."""

from typing import Literal

OnBusy = Literal["queue", "reject"]
"""What a message does that comes while a turn runs: wait for its own turn, or be refused with 409."""

SessionStatus = Literal["idle", "running", "rescheduling", "terminated"]
