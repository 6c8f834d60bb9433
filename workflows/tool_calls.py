"""The tool uses of one step: each goes its own way, by a gate, a call or a wait, and none holds up another."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.records import RecordActivities
from activities.tools import ToolActivities
from activities.waits import WaitActivities
from domain.commands import (
    AnswerInput,
    ApproveSignal,
    Gate,
    InputSignal,
    RunRef,
    RunStart,
    ToolInput,
    ToolRef,
    Verdict,
    WakeInput,
)
from workflows import options
from workflows.subagents import Subagents

Condition = Callable[[], bool]


class ToolCalls:
    """Lives as long as its workflow, for answers and decisions may come before they are waited for.

    `stopped`: nothing is waited for any more. `show` is told what the run waits for, or None.
    """

    def __init__(self, start: RunStart, stopped: Condition, show: Callable[[str | None], None], subagents: Subagents) -> None:
        self._start = start
        self._stopped = stopped
        self._show = show
        self._subagents = subagents
        self.in_flight: list[workflow.ActivityHandle[Any]] = []
        self.inputs: list[InputSignal] = []
        """Those that no tool use has taken yet."""
        self._answers: dict[str, InputSignal] = {}
        self._decisions: dict[str, ApproveSignal] = {}
        """By approval or, of those sent by hand, by tool use; one may come before its gate is reached."""
        self._gates: dict[str, ToolRef] = {}
        """Open ones, in the order in which they were asked."""
        self._waiting: dict[str, str] = {}
        """What each tool use waits for."""
        self.timed_out = False
        """An approval was not given in time, and the agent wants its run to be cancelled then."""

    def answer(self, signal: InputSignal) -> None:
        if signal.tool_use_id is None:
            self.inputs.append(signal)
        else:
            self._answers.setdefault(signal.tool_use_id, signal)

    def has_answer(self, tool_use_id: str) -> bool:
        return tool_use_id in self._answers or bool(self.inputs)

    def take_answer(self, tool_use_id: str) -> InputSignal:
        """The answer to that tool use, or else the oldest that names none."""
        return self._answers.get(tool_use_id) or self.inputs.pop(0)

    def decide(self, signal: ApproveSignal) -> None:
        """The first decision on a gate counts. One that names nothing is of the open gate that waits longest.

        Where no gate is open it is of none: kept, it would let through a call that nobody has seen yet.
        """
        gate = signal.approval_id or signal.tool_use_id
        if gate is None:
            gate = next((id for id, tool in self._gates.items() if self._decision(id, tool) is None), None)
        if gate is not None:
            self._decisions.setdefault(gate, signal)

    def _decision(self, approval_id: str, tool: ToolRef) -> ApproveSignal | None:
        return self._decisions.get(approval_id) or self._decisions.get(tool.id)

    @property
    def only_delegating(self) -> bool:
        """Nothing is done but by sub-agents."""
        return self._subagents.at_work > 0 and not self.in_flight and not self._waiting

    async def make(self, tools: tuple[ToolRef, ...]) -> None:
        """Carry out all of them. Returns when every one has its result, or at once when the run is stopped.

        A tool's failure is in the log for the model to read; what an activity raises here is a cancellation.
        """
        at_once = [asyncio.create_task(self._call(tool)) for tool in tools if tool.gate is None and tool.wait is None]
        at_once += [
            asyncio.create_task(self._subagents.delegate(tool, None))
            for tool in tools
            if tool.gate is None and tool.wait == "subagent"
        ]
        later = [
            asyncio.create_task(self._later(tool))
            for tool in tools
            if tool.gate is not None or tool.wait not in (None, "subagent")
        ]
        await asyncio.gather(*at_once, return_exceptions=True)
        if at_once and self._waiting:
            # Only now that nothing runs any more is the session idle.
            await workflow.execute_activity_method(
                WaitActivities.idle,
                RunRef(run_id=self._start.run_id, session_id=self._start.session_id),
                **options.record("waiting"),
            )
        for failed in await asyncio.gather(*later, return_exceptions=True):
            if isinstance(failed, BaseException) and not self._stopped():
                raise failed

    async def _later(self, tool: ToolRef) -> None:
        verdict = None
        if tool.gate is not None:
            verdict = await self._verdict(tool, tool.gate)
            if verdict is None:
                return
        if tool.wait is None:
            await self._call(tool, verdict)
        elif tool.wait == "subagent":
            await self._subagents.delegate(tool, verdict)
        else:
            await self._wait(tool, tool.wait)

    async def _call(self, tool: ToolRef, verdict: Verdict | None = None) -> None:
        call = workflow.start_activity_method(
            ToolActivities.run,
            ToolInput(
                run_id=self._start.run_id,
                session_id=self._start.session_id,
                tool_use_id=tool.id,
                workspace_id=self._start.workspace_id,
                verdict=verdict,
            ),
            **options.tool_call(tool.name, tool.timeout_seconds),
        )
        self.in_flight.append(call)
        if self._stopped():
            asyncio.get_running_loop().call_soon(call.cancel)
        try:
            await call
        except ActivityError:
            pass  # stopped, or the run is over by its row; a tool's own failure is a result
        finally:
            self.in_flight.remove(call)

    async def _verdict(self, tool: ToolRef, gate: Gate) -> Verdict | None:
        """The decision; None when the run is stopped meanwhile."""
        self._gates[gate.approval_id] = tool
        until = None if gate.on_timeout == "wait" else gate.until
        try:
            await self._until(
                tool, f"approval of {tool.name}", until, lambda: self._decision(gate.approval_id, tool) is not None
            )
        finally:
            del self._gates[gate.approval_id]
        if self._stopped():
            return None
        if decision := self._decision(gate.approval_id, tool):
            return Verdict(approval_id=gate.approval_id, decision=decision.decision, reason=decision.reason)
        if gate.on_timeout == "cancel_run":
            self.timed_out = True
        return Verdict(approval_id=gate.approval_id)

    async def _wait(self, tool: ToolRef, kind: str) -> None:
        match kind:
            case "input":
                if await self._until(tool, "input", tool.until, lambda: self.has_answer(tool.id)):
                    await self._record_answer(tool)
            case "tool_result":  # in the log already, where the next model call reads it
                await self._until(tool, f"the result of {tool.name}", tool.until, lambda: tool.id in self._answers)
            case _:
                came = await self._until(tool, tool.name, tool.until, lambda: tool.id in self._answers)
                if not self._stopped():
                    answer = self._answers[tool.id] if came else None
                    await self._wake(tool, None if answer is None else answer.event_id)

    async def _until(self, tool: ToolRef, what: str, until: float | None, came: Condition) -> bool:
        """Wait until it came, its time is over, or the run is stopped. Whether it came."""
        self._waiting[tool.id] = what
        self._show(what)
        left = None if until is None else timedelta(seconds=max(0.0, until - workflow.now().timestamp()))
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: came() or self._stopped(), timeout=left)
        del self._waiting[tool.id]
        self._show(next(iter(self._waiting.values()), None))
        return came() and not self._stopped()

    async def _record_answer(self, tool: ToolRef) -> None:
        signal = self.take_answer(tool.id)
        await workflow.execute_activity_method(
            RecordActivities.answer,
            AnswerInput(
                run_id=self._start.run_id,
                session_id=self._start.session_id,
                key=f"{self._start.run_id}/{tool.id}/result",
                tool_use_id=tool.id,
                event_id=signal.event_id,
                text=signal.text,
            ),
            **options.record("input"),
        )

    async def _wake(self, tool: ToolRef, event_id: str | None) -> None:
        await workflow.execute_activity_method(
            WaitActivities.wake,
            WakeInput(run_id=self._start.run_id, session_id=self._start.session_id, tool_use_id=tool.id, event_id=event_id),
            **options.record(tool.name),
        )
