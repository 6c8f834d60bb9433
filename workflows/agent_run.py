"""The run of an agent: model call, tool calls, again, until the turn ends or something stops it. Decides, never does."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any, Literal

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.model import ModelActivities
from activities.records import RecordActivities
from domain.commands import (
    AnswerInput,
    ApproveSignal,
    CancelSignal,
    CompactInput,
    CompleteInput,
    CompleteResult,
    FinishInput,
    InputSignal,
    PauseInput,
    PauseSignal,
    Progress,
    ResumeInput,
    RunResult,
    RunStart,
    RunState,
    Spent,
    ToolRef,
)
from domain.runs import StopType
from domain.usage import NANO
from workflows import attributes, endings, options
from workflows.in_flight import InFlight
from workflows.subagents import Subagents
from workflows.tool_calls import ToolCalls

INTERRUPTED = CompleteResult(stop="interrupted")


@workflow.defn(name="agent_run")
class AgentRun:
    @workflow.init
    def __init__(self, start: RunStart) -> None:
        self._start = start
        self._progress: Progress = start.progress
        self._allowance: Progress = start.allowance
        self._pause: PauseSignal | None = start.pause
        self._cancelled = False
        self._cancel_reason: str | None = None
        self._expired = False
        self._resumed = start.resumed
        self._pauses = 0
        self._inputs_recorded = 0
        self._subagents = Subagents(
            lambda: self._start, self._stopped, lambda: self._pause, lambda: (self._progress, self._allowance)
        )
        self._tools = ToolCalls(start, self._stopped, self._show_waiting, self._subagents)
        self._inputs_seen: set[str] = set()
        self._status = "running"
        self._doing = "starting"
        self._call = InFlight(lambda: self._tools.in_flight)
        self._compacted = 0
        """How often the model's context was, since the last call."""

    @workflow.run
    async def run(self, start: RunStart) -> RunResult:
        living = asyncio.create_task(self._live())
        try:
            # Shielded: Temporal's cancellation must reach the activity in flight, not the bookkeeping after it.
            return await asyncio.shield(living)
        except asyncio.CancelledError:
            self._cancelled = True
            self._call.stop()
            result = await living
            if result.status == "cancelled":
                raise
            return result

    @workflow.signal
    def pause(self, signal: PauseSignal | None = None) -> None:
        """Stop at the next step boundary; mode `now` interrupts the model call in flight."""
        self._pause = signal or PauseSignal()
        if self._pause.mode == "now" and self._call.calling_model:
            self._call.stop()

    @workflow.signal
    def resume(self) -> None:
        self._pause = None

    @workflow.signal
    def cancel(self, signal: CancelSignal | None = None) -> None:
        """The same as Temporal's own cancel, with a reason."""
        self._cancelled = True
        self._cancel_reason = signal.reason if signal else None
        self._call.stop()

    @workflow.signal
    def input(self, signal: InputSignal) -> None:
        """New input is in the log, or in the signal itself."""
        if signal.event_id is not None:
            if signal.event_id in self._inputs_seen:  # delivered a second time: it must not answer the next question
                return
            self._inputs_seen.add(signal.event_id)
        self._tools.answer(signal)

    @workflow.signal
    def approve(self, signal: ApproveSignal | None = None) -> None:
        """Decide on a tool call that waits for approval; by hand, without an argument, the one that waits longest."""
        self._tools.decide(signal or ApproveSignal())

    @workflow.signal
    def spent(self, report: Spent) -> None:
        """A sub-agent says what it has used."""
        self._subagents.spent(report)

    @workflow.query
    def state(self) -> RunState:
        return RunState(
            status=self._status,
            step=self._progress.steps,
            model_calls=self._progress.calls,
            output_tokens=self._progress.output_tokens,
            doing=self._doing,
            pause_requested=self._pause is not None,
            cancel_requested=self._cancelled,
        )

    async def _live(self) -> RunResult:
        expiry = self._watch_the_clock()
        try:
            outcome = await self._steps()
            while not (finished := await self._finish(outcome)).finished:
                outcome = await self._steps()
        finally:
            if expiry is not None:
                expiry.cancel()
        if finished.next_run is not None:
            await endings.start_next(finished.next_run)
        if finished.title is not None:
            await endings.start_title(finished.title)
        return RunResult(status=outcome.status, stop_reason=outcome.stop_type)

    async def _steps(self) -> FinishInput:
        """Step after step, until there is an outcome."""
        while True:
            if stopped := await self._between_steps():
                return stopped
            try:
                step = await self._call_model()
                if step.compact is not None:
                    step = await self._compact(step.compact)
            except ActivityError as error:
                if self._cancelled and workflow.patched("2026-11-21-cancelled-and-failed"):
                    continue
                return endings.failure(self._start, error, reason=self._cancel_reason, lost=self._call.left_open)
            if step.handed_back is not None:
                if step.handed_back.handed_back >= options.MODEL_HANDED_BACK:
                    return endings.handed_back(
                        self._start, step.handed_back, reason=self._cancel_reason, lost=self._call.left_open
                    )
            elif step.stop == "interrupted":
                await self._why_interrupted()
            elif step.stop == "tool_use":
                await self._call_tools(step.tools)
            elif step.stop != "continue":
                return self._outcome("completed", step.stop)

    async def _between_steps(self) -> FinishInput | None:
        while True:
            if self._cancelled:
                return self._outcome("cancelled", "interrupted")
            if self._expired:
                return self._outcome("completed", "max_duration")
            if limit := self._limit_reached():
                if self._start.limits.on_limit == "end":
                    return self._outcome("completed", limit)
                self._pause = PauseSignal()
                await self._stay_paused(limit)
                self._allowance = self._progress
            elif self._pause is not None:
                await self._stay_paused(None)
            elif self._tools.inputs:
                await self._record_input(None)
            else:
                break
        if workflow.info().is_continue_as_new_suggested():
            await workflow.wait_condition(workflow.all_handlers_finished)
            carried = {"progress": self._progress, "allowance": self._allowance, "resumed": self._resumed, "pause": None}
            if not (self._cancelled or self._pause or self._tools.inputs):
                workflow.continue_as_new(self._start.model_copy(update=carried))
        return None

    def _limit_reached(self) -> StopType | None:
        limits, done, since = self._start.limits, self._progress, self._allowance
        if limits.max_steps is not None and done.steps - since.steps >= limits.max_steps:
            return "max_steps"
        if limits.max_output_tokens is not None and done.output_tokens - since.output_tokens >= limits.max_output_tokens:
            return "max_tokens"
        if limits.max_cost_usd is not None and done.cost_nano_usd - since.cost_nano_usd >= limits.max_cost_usd * NANO:
            return "budget_reached"
        return None

    async def _stay_paused(self, limit: StopType | None) -> None:
        self._pauses += 1
        self._show("paused", f"paused: {limit}" if limit else "paused")
        key = f"{self._call_key()}/pause{self._pauses}"
        await workflow.execute_activity_method(
            RecordActivities.pause,
            PauseInput(
                run_id=self._start.run_id,
                session_id=self._start.session_id,
                key=key,
                limit=limit,
                lost=self._call.left_open,
            ),
            **options.record("pause"),
        )
        self._call.left_open = False
        await workflow.wait_condition(lambda: self._pause is None or self._cancelled or self._expired)
        self._resumed = True
        self._show("running", "resuming")

    async def _call_model(self) -> CompleteResult:
        limits = self._start.limits
        left = None
        if limits.max_output_tokens is not None:
            left = limits.max_output_tokens - self._progress.output_tokens + self._allowance.output_tokens
        step = self._progress.steps + 1
        before, resumed = self._progress.tries, self._resumed
        calls = self._progress.calls + (before is None)  # else it is the same call again
        self._progress = self._progress.model_copy(update={"calls": calls, "tries": None})
        self._tell(f"step {step}: calling {self._start.model}")
        call = workflow.start_activity_method(
            ModelActivities.complete,
            CompleteInput(
                run_id=self._start.run_id,
                session_id=self._start.session_id,
                call=self._call_key(),
                provider=self._start.model.partition(":")[0],
                resumed=resumed,
                max_output_tokens=left,
                before=before,
                lost=self._call.left_open,
                compacted=self._compacted,
            ),
            **options.model_call(
                self._start.model_queue, self._start.model_timeout_seconds, step, 0 if before is None else before.failed
            ),
            priority=workflow.info().priority,  # said, for the call's own worker does not learn what it inherits
        )
        self._resumed = False
        result = await self._call.ended(call)
        if result is None:
            return INTERRUPTED
        if result.compact is not None:
            return result
        if result.handed_back is not None:
            self._resumed = resumed  # it may not have come to writing that
            self._progress = self._progress.model_copy(update={"tries": result.handed_back})
            return result
        self._progress = self._progress.plus(result.output_tokens, result.cost_nano_usd).model_copy(update={"steps": step})
        self._compacted = 0
        await self._subagents.report(self._progress)
        return result

    async def _compact(self, why: Literal["near", "over"]) -> CompleteResult:
        """Room in the model's context, before the call is made again."""
        self._tell("compacting the context")
        provider = self._start.model.partition(":")[0]
        call = CompactInput(
            run_id=self._start.run_id, session_id=self._start.session_id, call=self._call_key(), provider=provider, why=why
        )
        result = await self._call.compacted(self._start, call)
        if result is None or result.interrupted:
            return INTERRUPTED
        self._compacted += 1
        self._progress = self._progress.plus(result.output_tokens, result.cost_nano_usd)
        await self._subagents.report(self._progress)
        return CompleteResult(stop="continue")

    async def _why_interrupted(self) -> None:
        # The stop flag of the live bus can be faster than the signal that says what it is for.
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(
                lambda: self._cancelled or self._expired or self._pause is not None, timeout=timedelta(seconds=10)
            )

    async def _call_tools(self, tools: tuple[ToolRef, ...]) -> None:
        self._tell("tools: " + ", ".join(tool.name for tool in tools))
        now = tuple(tool for tool in tools if tool.waits_for is None)
        if any(tool.wait == "subagent" for tool in tools):
            await self._delegate(now)
        else:
            await self._tools.make(now)
        if self._tools.timed_out:
            self._cancelled, self._cancel_reason = True, "An approval was not given in time."
        for tool in tools:
            if tool.waits_for is not None:
                await self._wait_for_input(tool)

    async def _delegate(self, tools: tuple[ToolRef, ...]) -> None:
        """The same with sub-agents. Where nothing else is under way, the run is paused with them."""
        making = asyncio.create_task(self._tools.make(tools))
        while True:
            await workflow.wait_condition(
                lambda: making.done() or bool(self._pause and self._tools.only_delegating and not self._stopped())
            )
            if making.done():
                break
            await self._stay_paused(None)
            if not self._stopped():
                await workflow.execute_activity_method(
                    RecordActivities.resume,
                    ResumeInput(
                        run_id=self._start.run_id,
                        session_id=self._start.session_id,
                        key=f"{self._call_key()}/resume{self._pauses}",
                    ),
                    **options.record("resume"),
                )
                self._resumed = False
        self._progress = self._subagents.take_total(self._progress)
        await making

    async def _wait_for_input(self, tool: ToolRef) -> None:
        self._show("waiting", "waiting for input")
        await workflow.wait_condition(lambda: self._tools.has_answer(tool.id) or self._cancelled or self._expired)
        if self._tools.has_answer(tool.id):
            await self._record_input(tool.id)
            self._show("running", "answered")

    def _show_waiting(self, what: str | None) -> None:
        if what is None:
            self._show("running", "answered")
        elif self._status == "waiting":
            self._tell(f"waiting for {what}")
        else:
            self._show("waiting", f"waiting for {what}")

    async def _record_input(self, tool_use_id: str | None) -> None:
        signal = self._tools.inputs.pop(0) if tool_use_id is None else self._tools.take_answer(tool_use_id)
        if tool_use_id is None and signal.event_id is not None:
            return  # a message that is in the log already: the next model call reads it there
        self._inputs_recorded += 1
        await workflow.execute_activity_method(
            RecordActivities.answer,
            AnswerInput(
                run_id=self._start.run_id,
                session_id=self._start.session_id,
                key=f"{self._call_key()}/input{self._inputs_recorded}",
                tool_use_id=tool_use_id,
                event_id=signal.event_id,
                text=signal.text,
            ),
            **options.record("input"),
        )

    async def _finish(self, outcome: FinishInput) -> Any:
        self._tell(f"finishing: {outcome.status}")
        return await workflow.execute_activity_method(RecordActivities.finish, outcome, **options.record(outcome.status))

    def _watch_the_clock(self) -> "asyncio.Task[None] | None":
        seconds = self._start.limits.max_seconds
        if seconds is None:
            return None
        if self._start.deadline is None:
            self._start = self._start.model_copy(update={"deadline": workflow.now().timestamp() + seconds})
        left = max(0.0, (self._start.deadline or 0.0) - workflow.now().timestamp())

        async def expire() -> None:
            await asyncio.sleep(left)
            self._expired = True
            self._call.stop()

        return asyncio.create_task(expire())

    def _stopped(self) -> bool:
        return self._cancelled or self._expired

    def _outcome(self, status: Any, stop: Any) -> FinishInput:
        return endings.outcome(self._start, status, stop, reason=self._cancel_reason, lost=self._call.left_open)

    def _call_key(self) -> str:
        return f"{self._start.run_id}.{self._start.attempt}/{self._progress.calls}"

    def _show(self, status: str, doing: str) -> None:
        self._status = status
        change = [attributes.STATUS.value_set(status)]
        workflow.upsert_search_attributes(change)  # pyright: ignore[reportUnknownMemberType]  # the SDK leaves its type open
        self._tell(doing)

    def _tell(self, doing: str) -> None:
        self._doing = doing
        workflow.set_current_details(f"**{self._status}** · {doing}")
