"""Work that goes on for as long as a batch does: step after step, each a transaction or two, in one activity.

One activity for minutes costs Temporal what one model call does; an activity for each step, or a workflow told of each run's
end, would cost a batch of ten thousand a hundred thousand events of history.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from temporalio import activity

from activities.heartbeat import heartbeating
from domain.batches import WorkResult
from domain.errors import Unavailable

log = logging.getLogger(__name__)

AT_MOST_SECONDS = 600.0
SHORTEST_SECONDS, LONGEST_SECONDS, LONGER = 0.1, 1.0, 1.3
"""Pauses between two looks: short while something happens, longer while nothing does."""

Did = Literal["something", "nothing", "all"]


async def steadily(step: Callable[[], Awaitable[Did]]) -> WorkResult:
    """Until all is done, the time is up, or this worker shuts down, which hands it to the next one."""
    until, pause = time.monotonic() + AT_MOST_SECONDS, SHORTEST_SECONDS
    async with heartbeating():
        leaving = asyncio.create_task(activity.wait_for_worker_shutdown())
        try:
            while not leaving.done() and time.monotonic() < until:
                did: Did = "nothing"
                try:
                    did = await step()
                except Unavailable as error:
                    log.warning("waiting: %s", error.message)
                if did == "all":
                    return WorkResult(over=True)
                pause = SHORTEST_SECONDS if did == "something" else min(pause * LONGER, LONGEST_SECONDS)
                await asyncio.wait({leaving}, timeout=pause)
        finally:
            leaving.cancel()
    return WorkResult(over=False)


async def told(deliveries: list[Awaitable[None]]) -> None:
    """Tell Temporal what is committed. What it does not take now, the sweeper tells it."""
    for failure in await asyncio.gather(*deliveries, return_exceptions=True):
        if isinstance(failure, Exception):
            log.warning("accepted, but not delivered yet: %s", failure)
