"""Heartbeats beside the work, so that a lost worker is noticed and a cancellation arrives; and what no cancellation breaks."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from domain.clock import now

T = TypeVar("T")


@asynccontextmanager
async def heartbeating() -> AsyncGenerator[None]:
    """Heartbeat at half the time-out for as long as the block runs."""
    timeout = activity.info().heartbeat_timeout
    task = asyncio.create_task(_beat(timeout.total_seconds() / 2)) if timeout else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def _beat(every_seconds: float) -> None:
    while True:
        await asyncio.sleep(every_seconds)
        activity.heartbeat()


async def unbroken(work: Coroutine[Any, Any, T]) -> T:
    """Await to the end what must not be left half done, though the activity is cancelled meanwhile.

    A stop comes by two ways (the live bus and Temporal), the second often while the first is still being obeyed: it must not
    have the call reported as ended before it has, nor lose the text that it had written.
    """
    task = asyncio.create_task(work)
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    return task.result()


def overdue(began: datetime) -> bool:
    """Whether this attempt may have been given up and made again elsewhere, unknown to a worker that was frozen meanwhile."""
    timeout = activity.info().heartbeat_timeout
    return timeout is not None and now() - began >= timeout


def superseded() -> ApplicationError:
    """What an attempt raises that finds that a later one has begun. Nobody hears it: Temporal has given this one up."""
    return ApplicationError("A later attempt has begun.", type="superseded", category=ApplicationErrorCategory.BENIGN)
