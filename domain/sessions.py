"""A session: a lasting conversation between people and agents."""

from typing import Literal

OnBusy = Literal["queue", "steer", "interrupt", "reject"]
"""What a message does that comes while a turn runs: wait for its own turn; enter the running one at its next model call; end
it and be next; or be refused with 409."""

QUEUE_DEPTH = 20
MAX_QUEUE_DEPTH = 1000

SessionStatus = Literal["idle", "running", "rescheduling", "terminated"]
