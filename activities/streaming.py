"""A call to a provider: its slot, and its stream until it is whole or stopped."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.heartbeat import heartbeating, unbroken
from activities.slots import Slots
from domain.commands import SLOT_SECONDS
from domain.completions import Completion, CompletionRequest, Delta, Provider
from domain.errors import NotFound, RunFinished
from domain.urgency import ORDINARY

T = TypeVar("T")


async def in_slot(slots: Slots, call: Callable[[], Coroutine[Any, Any, T]], leave: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Make a run's call while holding a slot; `leave` where none came in time, or where the worker shuts down.

    Raises ApplicationError where the run was terminated, or deleted, meanwhile: nothing may be written any more.
    """
    try:
        async with heartbeating():
            # The slot comes first: a call that waits for its provider has not begun, and leaves nothing when it is cancelled.
            if not await _acquired(slots):
                return await leave()
            try:
                return await call()
            finally:
                slots.release()
    except asyncio.CancelledError:
        details = activity.cancellation_details()
        if details is None or not details.worker_shutdown:
            raise
        return await unbroken(leave())
    except (RunFinished, NotFound) as error:
        benign = ApplicationErrorCategory.BENIGN
        raise ApplicationError(error.message, type=error.code, non_retryable=True, category=benign) from error


async def _acquired(slots: Slots) -> bool:
    """Wait for a slot; False when none came in time, or the worker shuts down, which begins nothing new."""
    if activity.is_worker_shutdown():
        return False
    background = (activity.info().priority.priority_key or ORDINARY) > ORDINARY
    if slots.take(background=background):
        return True
    waiting = asyncio.timeout(SLOT_SECONDS)

    async def give_up() -> None:
        await activity.wait_for_worker_shutdown()
        waiting.reschedule(0)

    leaving = asyncio.create_task(give_up())
    try:
        async with waiting:
            await slots.wait(background=background)
            return True
    except TimeoutError:
        return False
    finally:
        leaving.cancel()


def _unseen(_delta: Delta) -> None:
    """Nobody watches it being written."""


async def streamed(
    provider: Provider, request: CompletionRequest, stop: asyncio.Event, take: Callable[[Delta], None] = _unseen
) -> Completion | None:
    """The whole answer; None where the call was stopped before, by the flag or by Temporal. It has ended then.

    Raises ProviderError; CancelledError where the worker shuts down.
    """
    streaming = asyncio.create_task(whole(provider, request, take))
    stopping = asyncio.create_task(stop.wait())
    interrupted = False
    try:
        await asyncio.wait({streaming, stopping}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = not streaming.done()
    except asyncio.CancelledError:
        interrupted = not streaming.done()
        details = activity.cancellation_details()
        if interrupted and not stop.is_set() and (details is None or not details.cancel_requested):
            raise
    finally:
        stopping.cancel()
        if not streaming.done():
            streaming.cancel()
            await unbroken(asyncio.wait({streaming}))
    return None if interrupted else streaming.result()


async def whole(provider: Provider, request: CompletionRequest, take: Callable[[Delta], None] = _unseen) -> Completion:
    """The answer, however long it takes. Raises ProviderError."""
    async with aclosing(provider.stream(request)) as stream:
        async for item in stream:
            if isinstance(item, Completion):
                return item
            take(item)
    raise AssertionError("a provider's stream ended without a Completion or a ProviderError")
