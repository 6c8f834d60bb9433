"""What a model call reads and writes: three short transactions around the provider's stream."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Literal

from pydantic import JsonValue
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.contexts import CompactWhy, Contexts, Seen
from activities.heartbeat import overdue, superseded
from activities.lost_calls import end_lost_call
from activities.patience import patiently
from activities.tool_uses import Decided, ToolUses, tool_refs
from domain.agents import AgentConfig, ModelConfig
from domain.clock import now
from domain.commands import CompleteInput, CompleteResult, Tries
from domain.completions import Completion, CompletionRequest, Message, ToolUse
from domain.errors import ContextExceeded, NotFound, ProviderError, RunFinished, Unavailable
from domain.events import (
    ErrorDetail,
    Event,
    McpErrorDetail,
    ModelRequestEnd,
    ModelRequestStart,
    RetryStatus,
    RunResumed,
    RunStarted,
    SessionError,
    SessionRescheduled,
    SessionRunning,
)
from domain.ids import new_id
from domain.queue_events import SessionSteer
from domain.runs import RunError, RunStatus
from domain.tools import OfferedTool
from domain.usage import Usage, cost_of
from providers.pricing import cost_nano_usd
from providers.registry import Providers
from storage.database import Database, Transaction
from storage.journal import Draft, Journal, last_of_type, written
from storage.pending import take_up
from storage.rows import add
from storage.runs import Place, Runs
from tools.mcp.listing import Trouble

_SDK_ERROR = {"provider_rate_limited": "model_rate_limited_error", "provider_unavailable": "model_overloaded_error"}
_HANDED_BACK = RunError(code="handed_back", message="The worker shut down during the call: it is made again.", retryable=True)


MOST_COMPACTIONS = 3
"""Of a provider that says only that it is too much, and not by how much."""
NEARLY_FULL = ContextExceeded("The conversation nears the end of the model's context: it is compacted first.")
_NOWHERE = Place("", "", "", None, "", {})


class CallRecords:
    """The database side of one attempt of one model call. `attempt` is Temporal's, the log's counts on over handing back."""

    def __init__(
        self,
        database: Database,
        contexts: Contexts,
        providers: Providers,
        call: CompleteInput,
        attempt: int,
    ) -> None:
        self._database = database
        self._contexts = contexts
        self._seen: Seen | None = None
        self._tools: Mapping[str, OfferedTool] = {}
        self._providers = providers
        self._call = call
        self._before = call.before or Tries()
        self._try = attempt
        self._attempt = self._before.begun + attempt
        self._start_id = new_id("sevt")
        self._start_seq = 0
        self._made_at = now()
        self._begun = False
        self._model = ""

    async def answered(self) -> CompleteResult | None:
        """What an earlier attempt wrote, if its worker died between writing and reporting."""
        if self._attempt == 1:
            return None

        async def find(_first: bool) -> list[Event]:
            async with self._database.read() as connection:
                return await written(connection, self._call.session_id, f"{self._call.call}/answer")

        events = await patiently(find)
        return self._result(events) if events else None

    async def begin(self) -> tuple[ModelConfig, CompletionRequest]:
        """Write that the call starts and read what the model is to see."""
        return await patiently(self._begin)

    async def _begin(self, first: bool) -> tuple[ModelConfig, CompletionRequest]:
        call = self._call
        self._begun = True
        async with self._database.write() as transaction:
            run = await Runs(transaction.connection).standing(call.run_id)
            if RunStatus(run.status).over:
                raise RunFinished(f"Run {call.run_id} is over.")
            journal = self._journal(transaction)
            drafts: list[Draft] = []
            if self._attempt > 1 or call.lost:
                drafts += await end_lost_call(transaction.connection, call.session_id, call.run_id)
            if run.status == RunStatus.QUEUED:
                drafts += [Draft(RunStarted()), Draft(SessionRunning())]
            elif call.resumed and run.status == RunStatus.PAUSED:
                drafts += [Draft(RunResumed()), Draft(SessionRunning())]
            drafts.append(Draft(ModelRequestStart(model=run.model, attempt=self._attempt), id=self._start_id))
            started = await journal.append(call.session_id, call.run_id, drafts, key=self._key("start"), key_is_new=first)
            self._start_seq = started[-1].seq
            primary = run.thread_id is None
            if steered := await take_up(transaction.connection, call.session_id, call.run_id, primary=primary):
                applied = [Draft(SessionSteer(event_id=message, status="applied")) for message in steered]
                started = await journal.append(call.session_id, call.run_id, applied)
        # Not in the same transaction: a long conversation must not hold the writer while it is read. What was appended
        # since does not matter, for it enters the context at a later call's start.
        self._seen = seen = await self._contexts.seen(call.session_id, call.run_id, run, up_to=started[-1].seq)
        self._config, self._tools = seen.config, seen.tools
        for trouble in seen.troubles:
            await self._tell_trouble(trouble)
        self._model = seen.config.model.id
        return seen.config.model, self._request(seen.config, seen.messages)

    def may_compact(self, why: CompactWhy) -> bool:
        """Whether the context is to be compacted before this call. Not for ever, and only where something is to be won."""
        most = 1 if why == "near" else MOST_COMPACTIONS
        return self._seen is not None and self._call.compacted < most and self._seen.plan(why) is not None

    async def to_compact(self, why: CompactWhy, error: ProviderError, duration_ms: int) -> CompleteResult:
        """Close the call, which is made again when the context is compacted."""
        await self._append([Draft(self._failed_end(error, duration_ms))], f"end{self._attempt}")
        return CompleteResult(stop="interrupted", compact=why)

    async def answer(
        self, completion: Completion, texts: Sequence[Draft | None], duration_ms: int, first_token_ms: int | None
    ) -> CompleteResult:
        """Append the whole answer with its usage."""
        end = ModelRequestEnd(
            model_request_start_id=self._start_id,
            model_usage=completion.usage,
            cost=cost_of(self._cost(completion)),
            duration_ms=duration_ms,
            time_to_first_token_ms=first_token_ms,
            attempt=self._attempt,
        )

        async def write(first: bool) -> list[Event]:
            async with self._database.write() as transaction:
                uses = await self._tool_uses(transaction, completion)
                drafts, decided = uses.decided.drafts, uses.decided
                for block, text in zip(completion.content, texts, strict=True):
                    if text is not None:
                        drafts.append(text)
                    if isinstance(block, ToolUse):
                        uses.take(block)
                drafts += [*decided.denials, Draft(end, private={"stop": completion.stop_reason}), *decided.idle()]
                return await self._append_in(transaction, drafts, "answer", decided, is_new=first and self._attempt == 1)

        return self._result(await patiently(write))

    async def _tool_uses(self, transaction: Transaction, completion: Completion) -> ToolUses:
        if not any(isinstance(block, ToolUse) for block in completion.content):
            return ToolUses(_NOWHERE, self._config, {})
        place = await Runs(transaction.connection).place(self._call.run_id)
        return ToolUses(place, self._config, self._tools)

    async def interrupted(self, partial: Sequence[Draft], usage: Usage, duration_ms: int) -> CompleteResult:
        """Keep what had been written, marked interrupted."""
        end = ModelRequestEnd(
            model_request_start_id=self._start_id,
            is_error=True,
            model_usage=usage,
            duration_ms=duration_ms,
            attempt=self._attempt,
            error=RunError(code="interrupted", message="Stopped on request.", retryable=False),
        )
        drafts = [*partial, Draft(end, private={"stop": "interrupted"})]
        return self._result(await self._append(drafts, "answer"))

    def _failed_end(self, error: ProviderError, duration_ms: int) -> ModelRequestEnd:
        return ModelRequestEnd(
            model_request_start_id=self._start_id,
            is_error=True,
            model_usage=Usage(),
            duration_ms=duration_ms,
            attempt=self._attempt,
            error=RunError(code=error.code, message=error.message, retryable=error.retryable),
        )

    async def failed(self, error: ProviderError, duration_ms: int) -> ApplicationError:
        """Write the failure; returns what to raise: Temporal retries it, or not, as the error says."""
        end = self._failed_end(error, duration_ms)
        detail = ErrorDetail.model_validate(
            {
                "type": _SDK_ERROR.get(error.code, "model_request_failed_error"),
                "message": error.message,
                "code": error.code,
                "retry_status": RetryStatus(type=self._retry_status(error)),
            }
        )
        drafts = [Draft(end), Draft(SessionError(error=detail))]
        if detail.retry_status.type == "retrying":
            drafts.append(Draft(SessionRescheduled()))
        await self._append(drafts, f"end{self._attempt}")
        from_vendor = error.retry_after_seconds
        return ApplicationError(
            error.message,
            type=error.code,
            non_retryable=not error.retryable,
            category=ApplicationErrorCategory.BENIGN,  # expected: it is in the log of events, no stack trace helps
            next_retry_delay=None if from_vendor is None else _delay(from_vendor),
        )

    def _retry_status(self, error: ProviderError) -> Literal["retrying", "exhausted", "terminal"]:
        if not error.retryable:
            return "terminal"
        policy = activity.info().retry_policy
        last = policy is not None and policy.maximum_attempts and self._try >= policy.maximum_attempts
        return "exhausted" if last else "retrying"

    async def handed_back(self) -> CompleteResult:
        """Close the call, where it had begun: another worker, or this one later, is to make it again."""
        begun = self._begun
        # Without a database nothing is lost: the next attempt closes this one. Nor is it where the run is over meanwhile.
        with contextlib.suppress(Unavailable, RunFinished, NotFound):
            begun = begun and await self._close()
        tries = Tries(
            begun=self._attempt if begun else self._attempt - 1,
            failed=self._before.failed + self._try - 1,
            # What has waited too long for a slot may do so for ever: nothing is wrong with its workers.
            handed_back=self._before.handed_back + activity.is_worker_shutdown(),
        )
        return CompleteResult(stop="interrupted", handed_back=tries)

    async def _close(self) -> bool:
        """Whether the attempt's start had come to be written; its end is, then."""
        call = self._call
        async with self._database.read() as connection:
            if not await written(connection, call.session_id, self._key("start")):
                return False
        end = ModelRequestEnd(
            model_request_start_id=self._start_id,
            is_error=True,
            model_usage=Usage(),
            duration_ms=round((now() - self._made_at).total_seconds() * 1000),
            attempt=self._attempt,
            error=_HANDED_BACK,
        )
        await self._append_once([Draft(end)], f"end{self._attempt}")  # whoever shuts down waits for no database
        return True

    async def _append(self, drafts: Sequence[Draft], name: str) -> list[Event]:
        return await patiently(lambda first: self._append_once(drafts, name, is_new=first and self._attempt == 1))

    async def _append_once(self, drafts: Sequence[Draft], name: str, *, is_new: bool = False) -> list[Event]:
        async with self._database.write() as transaction:
            return await self._append_in(transaction, drafts, name, is_new=is_new)

    async def _append_in(
        self, transaction: Transaction, drafts: Sequence[Draft], name: str, decided: Decided | None = None, *, is_new: bool
    ) -> list[Event]:
        call = self._call
        journal, key = self._journal(transaction), f"{call.call}/{name}"
        changes = None if decided is None else decided.run_changes
        events = await journal.append(call.session_id, call.run_id, drafts, key=key, key_is_new=is_new, run_changes=changes)
        # Else an earlier try had written it, whose commit was not reported: with rows of its own.
        if decided is not None and events[-1].id == drafts[-1].id:
            for row in decided.rows:
                await add(transaction.connection, row)
        # Behind the append, for its lock is what puts this attempt and a later one in order.
        if overdue(self._made_at):
            start = "span.model_request_start"
            if await last_of_type(transaction.connection, call.session_id, call.run_id, start) > self._start_seq:
                raise superseded()
        return events

    def _request(self, config: AgentConfig, messages: tuple[Message, ...]) -> CompletionRequest:
        return CompletionRequest(
            model=config.model.name,
            messages=messages,
            system=config.system,
            tools=tuple(tool.spec for tool in self._tools.values()),
            max_output_tokens=self._call.max_output_tokens,
            options=config.model.options,
            attempt=self._attempt,
        )

    def _result(self, events: Sequence[Event]) -> CompleteResult:
        """The workflow's part of what was written: decisions, ids and counters."""
        end = next(event for event in reversed(events) if isinstance(event.payload, ModelRequestEnd))
        assert isinstance(end.payload, ModelRequestEnd)
        stop: JsonValue = (end.private or {}).get("stop")
        return CompleteResult.model_validate(
            {
                "stop": stop,
                "tools": tool_refs(events),
                "output_tokens": end.payload.model_usage.output_tokens,
                "cost_nano_usd": 0 if end.payload.cost is None else end.payload.cost.nano_usd,
            }
        )

    async def _tell_trouble(self, trouble: Trouble) -> None:
        """Write, once in a run, that a server's tools are missing."""
        call = self._call
        detail = McpErrorDetail(
            type="mcp_authentication_failed_error" if trouble.refused else "mcp_connection_failed_error",
            mcp_server_name=trouble.server,
            message=trouble.message,
        )
        async with self._database.write() as transaction:
            key = f"{call.run_id}/mcp/{trouble.server}"
            await self._journal(transaction).append(call.session_id, call.run_id, [Draft(SessionError(error=detail))], key=key)

    def _cost(self, completion: Completion) -> int | None:
        provider = self._model.partition(":")[0]
        config = self._providers.configs[provider]
        return cost_nano_usd(config, completion.model, completion.usage)

    def _key(self, name: str) -> str:
        return f"{self._call.call}/{name}{self._attempt}"

    @staticmethod
    def _journal(transaction: Transaction) -> Journal:
        return Journal(transaction.connection, transaction.appended)


def _delay(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)
