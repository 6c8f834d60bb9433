"""Delegations: each is a child workflow on a thread of its own, that ends with the run that delegated."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from temporalio import workflow
from temporalio.exceptions import ApplicationError, ChildWorkflowError
from temporalio.exceptions import CancelledError as ChildCancelled
from temporalio.exceptions import TerminatedError as ChildTerminated

from activities.subagents import SubagentActivities
from domain.commands import (
    Delegated,
    DelegateInput,
    PauseSignal,
    Progress,
    RunResult,
    RunStart,
    Spent,
    SubagentEnd,
    ToolRef,
    Verdict,
)
from domain.usage import NANO
from workflows import attributes, options

Ending = Literal["failed", "cancelled", "terminated"]
Child = workflow.ChildWorkflowHandle[Any, RunResult]


class Subagents:
    """Lives as long as its workflow. `stopped`: nothing goes on any more. `pause`: what the run was asked for, if anything.

    `used` is what the run itself has used; with what its sub-agents have, that is `total`.
    """

    def __init__(
        self,
        start: Callable[[], RunStart],
        stopped: Callable[[], bool],
        pause: Callable[[], PauseSignal | None],
        progress: Callable[[], tuple[Progress, Progress]],
    ) -> None:
        self._start = start
        self._stopped = stopped
        self._pause = pause
        self._progress = progress
        self._at_work = 0
        self._spent: dict[str, Spent] = {}
        self._told: Progress | None = None

    @property
    def at_work(self) -> int:
        return self._at_work

    def spent(self, report: Spent) -> None:
        """What a sub-agent has used since it began: reports may come twice, and the newest says it all."""
        before = self._spent.get(report.run_id)
        if before is None or before.output_tokens <= report.output_tokens:
            self._spent[report.run_id] = report

    def total(self, own: Progress) -> Progress:
        """What the run has used with all that is below it."""
        if not self._spent:
            return own
        return own.model_copy(
            update={
                "output_tokens": own.output_tokens + sum(spent.output_tokens for spent in self._spent.values()),
                "cost_nano_usd": own.cost_nano_usd + sum(spent.cost_nano_usd for spent in self._spent.values()),
            }
        )

    def take_total(self, own: Progress) -> Progress:
        """The same, when none is at work: from now on it is the run's own."""
        total = self.total(own)
        self._spent.clear()
        return total

    async def report(self, total: Progress) -> None:
        """Tell the run that delegated to this one, where the two share limits."""
        to = self._start().reports_to
        if to is None or total == self._told:
            return
        self._told = total
        spent = Spent(run_id=self._start().run_id, output_tokens=total.output_tokens, cost_nano_usd=total.cost_nano_usd)
        with contextlib.suppress(ApplicationError):  # it is gone
            await workflow.get_external_workflow_handle(to).signal("spent", spent)

    async def delegate(self, tool: ToolRef, verdict: Verdict | None) -> None:
        """Have it done. Returns when the tool use has its result; however the sub-agent ends, the run does not fail by it."""
        at_once = tool.at_once or 1
        while self._at_work >= at_once and not self._over():  # of those that wait for a place, one gets it
            await workflow.wait_condition(lambda: self._at_work < at_once or self._over())
        if self._stopped():
            return
        self._at_work += 1
        try:
            opened = await self._open(tool, verdict)
            if opened.start is not None:
                await self._run(tool, opened.start)
        finally:
            self._at_work -= 1

    async def _open(self, tool: ToolRef, verdict: Verdict | None) -> Delegated:
        start, left = self._start(), self._left()
        seconds = None if start.deadline is None else round(start.deadline - workflow.now().timestamp())
        return await workflow.execute_activity_method(
            SubagentActivities.open,
            DelegateInput(
                run_id=start.run_id,
                session_id=start.session_id,
                tool_use_id=tool.id,
                verdict=verdict,
                output_tokens_left=left["output_tokens"],
                cost_nano_usd_left=left["cost_nano_usd"],
                seconds_left=seconds,
            ),
            **options.record(tool.name),
        )

    async def _run(self, tool: ToolRef, found: RunStart) -> None:
        limits = self._start().limits
        shares = self._start().reports_to is not None or limits.max_output_tokens is not None or limits.max_cost_usd is not None
        pause = self._pause() or found.pause
        start = found.model_copy(update={"pause": pause, "reports_to": self._start().run_id if shares else None})
        ending: Ending | None = "cancelled"
        if not self._over():
            child: Child = await workflow.start_child_workflow(
                "agent_run",
                start,
                result_type=RunResult,
                id=start.run_id,
                parent_close_policy=workflow.ParentClosePolicy.TERMINATE,
                search_attributes=attributes.of(start),
                static_summary=f"{start.agent} on {start.model}",
            )
            await self._follow(child, pause)
            ending = _ending(child)
        spent = await workflow.execute_activity_method(
            SubagentActivities.close,
            SubagentEnd(
                run_id=self._start().run_id,
                session_id=start.session_id,
                tool_use_id=tool.id,
                subagent_run_id=start.run_id,
                ending=ending,
            ),
            **options.record(tool.name),
        )
        self.spent(spent)
        await self.report(self.total(self._progress()[0]))

    async def _follow(self, child: Child, told: PauseSignal | None) -> None:
        """Until it is over. What the run is told, it is told too."""
        while not child.done():
            await workflow.wait_condition(partial(self._is_news, child, told))
            if child.done():
                return
            if self._over():
                # In the next turn of the loop: see AgentRun._stop_in_flight.
                asyncio.get_running_loop().call_soon(child.cancel)
                await asyncio.wait({child})
                return
            told = self._pause()
            with contextlib.suppress(ApplicationError):  # it has just ended
                if told is None:
                    await child.signal("resume")
                else:
                    await child.signal("pause", told)

    def _is_news(self, child: Child, told: PauseSignal | None) -> bool:
        return child.done() or self._over() or self._pause() != told

    def _over(self) -> bool:
        """The run is stopped, or what it shares with its sub-agents is used up."""
        if self._stopped():
            return True
        ends = self._start().limits.on_limit == "end"
        return ends and any(left is not None and left <= 0 for left in self._left().values())

    def _left(self) -> Mapping[str, int | None]:
        limits = self._start().limits
        own, since = self._progress()
        total = self.total(own)
        tokens = limits.max_output_tokens
        cost = None if limits.max_cost_usd is None else round(limits.max_cost_usd * NANO)
        return {
            "output_tokens": None if tokens is None else tokens - total.output_tokens + since.output_tokens,
            "cost_nano_usd": None if cost is None else cost - total.cost_nano_usd + since.cost_nano_usd,
        }


def _ending(child: Child) -> Ending | None:
    """How it ended, where it did not end by itself."""
    error = asyncio.CancelledError() if child.cancelled() else child.exception()
    cause = error.cause if isinstance(error, ChildWorkflowError) else error
    if cause is None:
        return None
    if isinstance(cause, ChildCancelled | asyncio.CancelledError):
        return "cancelled"
    return "terminated" if isinstance(cause, ChildTerminated) else "failed"
