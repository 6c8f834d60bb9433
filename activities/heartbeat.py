"""Heartbeats beside the work, so that a lost worker is noticed and a cancellation arrives."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from temporalio import activity


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
        activity.heartbeat()
        await asyncio.sleep(every_seconds)
