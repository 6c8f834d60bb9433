"""One model call: reads the log, streams the provider, writes what came of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue
from temporalio import activity

from activities.contexts import Contexts
from activities.heartbeat import unbroken
from activities.model_records import NEARLY_FULL, CallRecords
from activities.slots import Slots
from activities.streaming import in_slot, streamed
from domain.commands import CompleteInput, CompleteResult
from domain.completions import AnswerBlock, Delta, Text, Thinking
from domain.errors import ContextExceeded, ProviderError
from domain.events import AgentMessage, AgentThinking, TextContent
from domain.ids import new_id
from domain.usage import Usage, estimate_tokens
from live.bus import LiveBus
from providers.registry import Providers
from storage.database import Database
from storage.journal import Draft


@dataclass
class Writing:
    """What a call has written so far, by block index."""

    started: float = field(default_factory=time.monotonic)
    first_token_ms: int | None = None
    ids: dict[int, str] = field(default_factory=dict[int, str])
    texts: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    kinds: dict[int, str] = field(default_factory=dict[int, str])

    def take(self, delta: Delta) -> str:
        """Note a delta; returns the id of the event it belongs to."""
        if self.first_token_ms is None:
            self.first_token_ms = self.elapsed_ms
        self.kinds[delta.index] = delta.kind
        self.texts.setdefault(delta.index, []).append(delta.text)
        return self.id_of(delta.index)

    def id_of(self, index: int) -> str:
        return self.ids.setdefault(index, new_id("sevt"))

    @property
    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self.started) * 1000)

    def partial(self) -> list[Draft]:
        """What had been written when the call was stopped, as events marked interrupted."""
        drafts: list[Draft] = []
        for index in sorted(self.texts):
            text = "".join(self.texts[index])
            if self.kinds[index] == "thinking":
                drafts.append(Draft(AgentThinking(text=text, interrupted=True), id=self.ids[index]))
            else:
                content = (TextContent(text=text),)
                drafts.append(Draft(AgentMessage(content=content, interrupted=True), id=self.ids[index]))
        return drafts

    def usage(self) -> Usage:
        """Nobody reports the usage of a call that was cut off: count what was seen."""
        return Usage(output_tokens=sum(estimate_tokens("".join(pieces)) for pieces in self.texts.values()), estimated=True)


class ModelActivities:
    """Model calls. `slots` holds each provider's limit of calls at once in this worker."""

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

    @activity.defn(name="model.complete")
    async def complete(self, call: CompleteInput) -> CompleteResult:
        """Make one model call and append its answer. Safe to run again: the answer is found by the call's key.

        A worker that shuts down hands the call back, as a result: an error would use up one of the call's attempts. So is a
        call that got no slot of its provider in time.
        """
        records = CallRecords(self._database, self._contexts, self._providers, call, activity.info().attempt)
        try:
            return await in_slot(self._slots[call.provider], lambda: self._complete(call, records), records.handed_back)
        finally:
            self._live.close_previews(call.session_id, call.run_id)

    async def _complete(self, call: CompleteInput, records: CallRecords) -> CompleteResult:
        if before := await records.answered():
            return before
        model, request = await records.begin()
        if records.may_compact("near"):
            return await unbroken(records.to_compact("near", NEARLY_FULL, 0))
        try:
            provider = self._providers.get(model.provider)
        except ProviderError as error:
            raise await unbroken(records.failed(error, 0)) from None
        writing = Writing()

        def take(delta: Delta) -> None:
            kind = "agent.thinking" if delta.kind == "thinking" else "agent.message"
            self._live.write(call.session_id, call.run_id, writing.take(delta), kind, delta.text)

        try:
            with self._live.stoppable(call.run_id) as stop:
                completion = await streamed(provider, request, stop, take)
        except ContextExceeded as error:
            if records.may_compact("over"):
                return await unbroken(records.to_compact("over", error, writing.elapsed_ms))
            raise await unbroken(records.failed(error, writing.elapsed_ms)) from None
        except ProviderError as error:
            raise await unbroken(records.failed(error, writing.elapsed_ms)) from None
        if completion is None:
            return await unbroken(records.interrupted(writing.partial(), writing.usage(), writing.elapsed_ms))
        drafts = [_draft(index, block, writing) for index, block in enumerate(completion.content)]
        return await unbroken(records.answer(completion, drafts, writing.elapsed_ms, writing.first_token_ms))


def _draft(index: int, block: AnswerBlock, writing: Writing) -> Draft | None:
    """The event of a finished block; None for empty text."""
    match block:
        case Text(text=text):
            return Draft(AgentMessage(content=(TextContent(text=text),)), id=writing.id_of(index)) if text else None
        case Thinking(text=text, signature=signature, redacted=redacted):
            private: dict[str, JsonValue] = {"signature": signature, "redacted": redacted}
            kept = private if signature or redacted else None
            return Draft(AgentThinking(text=text), id=writing.id_of(index), private=kept)
        case _:
            return None
