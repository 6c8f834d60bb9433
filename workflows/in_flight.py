"""The call to the model that is under way: how it is stopped, and what comes of it."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.exceptions import ActivityError
from temporalio.exceptions import CancelledError as ActivityCancelled
from temporalio.exceptions import TimeoutError as ActivityTimedOut

from activities.compact import CompactActivities
from domain.commands import CompactInput, CompactResult, RunStart
from workflows import options

T = TypeVar("T")
Handle = workflow.ActivityHandle[Any]


class InFlight:
    """`others`: tool calls, which are stopped together with it."""

    def __init__(self, others: Callable[[], Sequence[Handle]]) -> None:
        self._others = others
        self._call: Handle | None = None
        self._stopping = False
        """The call in flight was told to stop."""
        self.left_open = False
        """It was stopped, and nobody answered: its worker died."""

    @property
    def calling_model(self) -> bool:
        return self._call is not None

    def stop(self) -> None:
        self._stopping = True
        for handle in (*(() if self._call is None else (self._call,)), *self._others()):
            # In the next turn of the loop: cancelled in the one in which its result came in, an activity loses the result and
            # raises a bare CancelledError, which would end the workflow without settling the run.
            asyncio.get_running_loop().call_soon(handle.cancel)

    async def ended(self, call: "workflow.ActivityHandle[T]") -> T | None:
        """Its result; None where it was stopped before it had one. Raises ActivityError."""
        self._call, self._stopping, self.left_open = call, False, False
        try:
            return await call
        except ActivityError as error:
            if isinstance(error.cause, ActivityCancelled):
                return None
            if self._stopping and isinstance(error.cause, ActivityTimedOut) and workflow.patched("2026-11-21-stopped-and-lost"):
                # Its worker died with the call, and Temporal does not try again what it was told to cancel.
                self.left_open = True
                return None
            raise
        finally:
            self._call = None

    async def compacted(self, start: RunStart, call: CompactInput) -> CompactResult | None:
        """Room in the model's context; None where it was stopped. If nobody can write a summary, what is older is left out."""
        given = options.compaction(start.model_queue, start.model_timeout_seconds)
        try:
            return await self.ended(
                workflow.start_activity_method(CompactActivities.compact, call, priority=workflow.info().priority, **given)
            )
        except ActivityError:
            call = call.model_copy(update={"summarise": False})
            return await self.ended(
                workflow.start_activity_method(CompactActivities.compact, call, priority=workflow.info().priority, **given)
            )
