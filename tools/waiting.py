"""Built-in tools `sleep_until` and `wait_for_event`: waits that hold no worker, for as long as a year."""

import math
from datetime import datetime, timedelta
from typing import cast

from pydantic import AwareDatetime, BaseModel, Field, JsonValue

from domain.clock import now
from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext, Wait

LONGEST_SECONDS = 366 * 86_400


class SleepUntilArguments(Strict):
    until: AwareDatetime | None = Field(default=None, description="A time with its offset from UTC: 2027-01-31T09:00:00Z")
    seconds: float | None = Field(default=None, ge=0, le=LONGEST_SECONDS, description="Or a number of seconds from now.")


class SleepUntil:
    name = "sleep_until"
    description = "Do nothing until a time, then go on. Give either until or seconds."
    arguments: type[BaseModel] = SleepUntilArguments
    effect = Effect.READ
    timeout_seconds = 1.0
    asks = False

    def plan_wait(self, arguments: BaseModel) -> Wait:
        given = cast(SleepUntilArguments, arguments)
        if (given.until is None) == (given.seconds is None):
            raise ToolFailed("invalid arguments\ngive either until or seconds")
        return Wait("time", until=_limited(given.until) if given.until is not None else _in(given.seconds or 0))

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        """Only reached with arguments that cannot be waited with. Raises ToolFailed."""
        self.plan_wait(arguments)
        raise ToolFailed("nothing waits here")


class WaitForEventArguments(Strict):
    event_type: str = Field(min_length=1, max_length=200, description="What the event is called, for example invoice.paid")
    match: dict[str, JsonValue] | None = Field(
        default=None,
        max_length=20,
        description="Members that the event's data must have with these values.",
    )
    timeout_seconds: float | None = Field(
        default=None, gt=0, le=LONGEST_SECONDS, description="Give up after this long. Left out: wait as long as it takes."
    )


class WaitForEvent:
    name = "wait_for_event"
    description = "Wait until an event happens outside, and read what it says."
    arguments: type[BaseModel] = WaitForEventArguments
    effect = Effect.READ
    timeout_seconds = 1.0
    asks = False

    def plan_wait(self, arguments: BaseModel) -> Wait:
        given = cast(WaitForEventArguments, arguments)
        until = None if given.timeout_seconds is None else _in(given.timeout_seconds)
        return Wait("event", until=until, event_type=given.event_type, event_match=given.match)

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        """Never reached: all valid arguments can be waited with."""
        raise ToolFailed("nothing waits here")


def _in(seconds: float) -> datetime:
    return now() + timedelta(seconds=math.ceil(seconds * 1000) / 1000)


def _limited(until: datetime) -> datetime:
    if until > _in(LONGEST_SECONDS):
        raise ToolFailed("invalid arguments\nuntil: more than a year ahead")
    return until
