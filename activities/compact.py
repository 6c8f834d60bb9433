"""Compacting a thread's context: its own model is asked for a summary, which stands for what is older from then on."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NoReturn

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.contexts import Contexts, Seen
from activities.heartbeat import overdue, superseded, unbroken
from activities.lost_calls import end_lost_call
from activities.patience import patiently
from activities.slots import Slots
from activities.streaming import in_slot, streamed
from domain.clock import now
from domain.commands import CompactInput, CompactResult
from domain.compaction import Plan
from domain.completions import Completion, Text
from domain.errors import ContextExceeded, ProviderError, RunFinished
from domain.events import Event, ModelRequestEnd, ModelRequestStart
from domain.ids import new_id
from domain.runs import RunError, RunStatus
from domain.usage import Usage, cost_of
from live.bus import LiveBus
from providers.pricing import cost_nano_usd
from providers.registry import Providers
from storage.database import Database, Transaction
from storage.journal import Draft, Journal, written
from storage.runs import Runs

TRIES = 3
"""Of asking for a summary. A turn that waits for one is better served by going on without it."""
LONGEST_PAUSE = timedelta(seconds=30)
_NOBODY = RunError(code="no_summary", message="No worker could ask for a summary.", retryable=True)
_NO_SUMMARY = RunError(code="no_summary", message="The model gave no summary.", retryable=False)
_STOPPED = RunError(code="interrupted", message="Stopped on request.", retryable=False)


class CompactActivities:
    """`slots`: as of ModelActivities, for a summary is a call like any other."""

    def __init__(
        self,
        database: Database,
        live: LiveBus,
        providers: Providers,
        contexts: Contexts,
        slots: Mapping[str, Slots],
    ) -> None:
        self._database = database
        self._live = live
        self._providers = providers
        self._contexts = contexts
        self._slots = slots

    @activity.defn(name="model.compact")
    async def compact(self, call: CompactInput) -> CompactResult:
        """Append the compaction, with what it cost. Safe to run again: it is found by the call's key.

        Where no summary comes of it, the turn goes on: with what there is, or without what is older, and the event says so.
        """
        return await in_slot(self._slots[call.provider], lambda: self._compact(call), _leave)

    async def _compact(self, call: CompactInput) -> CompactResult:
        attempt = activity.info().attempt
        records = _Records(self._database, call, attempt)
        if attempt > 1 and (before := await records.written()):
            return before
        seen = await records.begin(self._contexts)
        plan = seen.plan(call.why)
        if plan is None:
            return CompactResult()  # somebody was faster
        if not plan.gone:
            return await records.done([Draft(plan.done(seen.transcript, None))])
        if not call.summarise:
            return await records.done([*await records.lost(), *_left_out(call, seen, plan, _NOBODY)])
        return await self._summarise(call, seen, plan, records, attempt)

    async def _summarise(self, call: CompactInput, seen: Seen, plan: Plan, records: "_Records", attempt: int) -> CompactResult:
        model = seen.config.model
        await records.start(model.id)
        try:
            provider = self._providers.get(model.provider)
            with self._live.stoppable(call.run_id) as stop:
                completion = await streamed(provider, plan.request(model.name, attempt), stop)
        except ProviderError as error:
            if (error.retryable or isinstance(error, ContextExceeded)) and attempt < TRIES:
                raise await unbroken(records.failed(error)) from None
            why = RunError(code=error.code, message=error.message, retryable=error.retryable)
            return await unbroken(records.done([Draft(records.end(error=why)), *_left_out(call, seen, plan, why)]))
        if completion is None:
            return await unbroken(records.interrupted())
        cost = cost_nano_usd(self._providers.configs[model.provider], completion.model, completion.usage)
        summary = _summary(completion)
        why = _NO_SUMMARY if summary is None else None
        end = Draft(records.end(usage=completion.usage, cost=cost, error=why))
        if why is not None:
            return await unbroken(records.done([end, *_left_out(call, seen, plan, why)]))
        return await unbroken(records.done([end, Draft(plan.done(seen.transcript, summary))]))


class _Records:
    """The database side of one attempt."""

    def __init__(self, database: Database, call: CompactInput, attempt: int) -> None:
        self._database = database
        self._call = call
        self._attempt = attempt
        self._key = f"{call.call}/compact"
        self._start_id = new_id("sevt")
        self._made_at = now()
        self._started = time.monotonic()

    async def written(self) -> CompactResult | None:
        """What an earlier attempt wrote, if its worker died between writing and reporting."""

        async def find(_first: bool) -> list[Event]:
            async with self._database.read() as connection:
                return await written(connection, self._call.session_id, self._key)

        events = await patiently(find)
        return _result(events) if events else None

    async def begin(self, contexts: Contexts) -> Seen:
        """Read the conversation. Raises RunFinished."""

        async def read(_first: bool) -> Seen:
            async with self._database.read() as connection:
                run = await Runs(connection).standing(self._call.run_id)
            if RunStatus(run.status).over:
                raise RunFinished(f"Run {self._call.run_id} is over.")
            return await contexts.seen(self._call.session_id, self._call.run_id, run)

        return await patiently(read)

    async def start(self, model: str) -> None:
        start = ModelRequestStart(model=model, attempt=self._attempt, purpose="compaction")

        async def write(_first: bool) -> None:
            async with self._database.write() as transaction:
                lost = self._attempt > 1
                open_call = (
                    await end_lost_call(transaction.connection, self._call.session_id, self._call.run_id) if lost else []
                )
                drafts = [*open_call, Draft(start, id=self._start_id)]
                await self._append(transaction, drafts, f"{self._key}/start{self._attempt}")

        await patiently(write)

    async def lost(self) -> list[Draft]:
        """The end of the call that the last worker left open."""
        async with self._database.read() as connection:
            return await end_lost_call(connection, self._call.session_id, self._call.run_id)

    def end(self, usage: Usage | None = None, cost: int | None = None, error: RunError | None = None) -> ModelRequestEnd:
        return ModelRequestEnd(
            model_request_start_id=self._start_id,
            is_error=error is not None,
            model_usage=usage or Usage(),
            cost=cost_of(cost),
            duration_ms=round((time.monotonic() - self._started) * 1000),
            attempt=self._attempt,
            error=error,
            purpose="compaction",
        )

    async def done(self, drafts: Sequence[Draft]) -> CompactResult:
        return _result(await self._write(drafts, self._key) if drafts else [])

    async def interrupted(self) -> CompactResult:
        await self._write([Draft(self.end(error=_STOPPED))], f"{self._key}/end{self._attempt}")
        return CompactResult(interrupted=True)

    async def failed(self, error: ProviderError) -> ApplicationError:
        why = RunError(code=error.code, message=error.message, retryable=error.retryable)
        await self._write([Draft(self.end(error=why))], f"{self._key}/end{self._attempt}")
        asked = error.retry_after_seconds
        return ApplicationError(
            error.message,
            type=error.code,
            category=ApplicationErrorCategory.BENIGN,
            next_retry_delay=None if asked is None else min(timedelta(seconds=asked), LONGEST_PAUSE),
        )

    async def _write(self, drafts: Sequence[Draft], key: str) -> list[Event]:
        async def write(_first: bool) -> list[Event]:
            async with self._database.write() as transaction:
                events = await self._append(transaction, drafts, key)
                if overdue(self._made_at) and await written(transaction.connection, self._call.session_id, self._later()):
                    raise superseded()
                return events

        return await patiently(write)

    def _later(self) -> str:
        return f"{self._key}/start{self._attempt + 1}"

    async def _append(self, transaction: Transaction, drafts: Sequence[Draft], key: str) -> list[Event]:
        journal = Journal(transaction.connection, transaction.appended)
        return await journal.append(self._call.session_id, self._call.run_id, drafts, key=key)


def _summary(completion: Completion) -> str | None:
    text = "".join(block.text for block in completion.content if isinstance(block, Text)).replace("\x00", "").strip()
    return None if completion.stop_reason == "refusal" else text or None


def _left_out(call: CompactInput, seen: Seen, plan: Plan, why: RunError) -> list[Draft]:
    """Without a summary: nothing, while what there is still fits, for the next step tries again; else what is older goes."""
    if call.why == "near" and seen.fits:
        return []
    return [Draft(plan.done(seen.transcript, None).model_copy(update={"error": why}))]


def _result(events: Sequence[Event]) -> CompactResult:
    ends = [event.payload for event in events if isinstance(event.payload, ModelRequestEnd)]
    return CompactResult(
        output_tokens=sum(end.model_usage.output_tokens for end in ends),
        cost_nano_usd=sum(end.cost.nano_usd for end in ends if end.cost is not None),
    )


async def _leave() -> NoReturn:
    benign = ApplicationErrorCategory.BENIGN
    raise ApplicationError("The worker shuts down, or has no slot.", type="handed_back", category=benign)
