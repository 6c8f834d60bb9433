"""Writing a session's title: one short model call, off the path of every turn."""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from activities.heartbeat import unbroken
from activities.patience import patiently
from activities.slots import Slots
from activities.streaming import whole
from domain.agents import ModelConfig
from domain.commands import TitleStart
from domain.completions import Completion, CompletionRequest, Provider, Text
from domain.errors import NotFound, ProviderError, ProviderStalled, ProviderUnavailable
from domain.events import SessionUpdated, TitleSuggested, UserMessage
from domain.titles import title_of, title_request
from domain.transcript import plain
from domain.usage import cost_of
from providers.pricing import cost_nano_usd
from providers.registry import Providers
from storage.database import Database
from storage.journal import Draft, Journal, read_one, written
from storage.runs import Runs
from storage.titles import Titles

log = logging.getLogger(__name__)

CALL_SECONDS = 60.0
KEY = "title"


@dataclass(frozen=True)
class Exchange:
    question: str
    answer: str | None


class TitleActivities:
    """`slots` as of the model calls of turns, which go first."""

    def __init__(self, database: Database, providers: Providers, slots: Mapping[str, Slots]) -> None:
        self._database = database
        self._providers = providers
        self._slots = slots

    @activity.defn(name="titles.write")
    async def write(self, start: TitleStart) -> None:
        """Have a model write the title, unless the session has one. Safe to run again. What fails for good is given up."""
        try:
            exchange = await self._exchange(start)
            if exchange is not None:
                await self._write(start, exchange)
        except NotFound:  # deleted meanwhile
            pass
        except ProviderError as error:
            if error.retryable and not _is_last():
                raise _later(error) from None
            log.info("%s gets no title: %s", start.session_id, error.message)
            await self._give_up(start)

    async def _exchange(self, start: TitleStart) -> Exchange | None:
        """What was said first; None where no title is wanted any more. Raises NotFound."""
        async with self._database.read() as connection:
            run = await Runs(connection).get(start.run_id, start.workspace_id)
            if not await Titles(connection, start.workspace_id).wanted(start.session_id):
                return None
            asked = None
            if run.input_event_id is not None:  # which may have been sent to a turn before it
                asked = (await read_one(connection, start.session_id, run.input_event_id)).payload
        return Exchange(plain(asked.content) if isinstance(asked, UserMessage) else "", run.output)

    async def _write(self, start: TitleStart, exchange: Exchange) -> None:
        """Raises ProviderError, NotFound."""
        model = ModelConfig(id=start.model)
        provider = self._providers.get(model.provider)
        request = title_request(model.name, exchange.question, exchange.answer, activity.info().attempt)
        began = time.monotonic()
        completion = await self._call(provider, self._slots[model.provider], request)
        cost = cost_nano_usd(self._providers.configs[model.provider], completion.model, completion.usage)
        suggested = TitleSuggested(
            title=title_of("".join(block.text for block in completion.content if isinstance(block, Text))),
            model=start.model,
            model_usage=completion.usage,
            cost=cost_of(cost),
            duration_ms=round((time.monotonic() - began) * 1000),
        )
        await unbroken(patiently(lambda _: self._record(start, suggested)))

    async def _call(self, provider: Provider, slots: Slots, request: CompletionRequest) -> Completion:
        """Raises ProviderError, also where a turn's call wants the slot that this one would have, or has."""
        if not slots.take(background=True):
            raise ProviderUnavailable("all of the provider's slots are taken")
        try:
            answering = asyncio.create_task(whole(provider, request))
            wanted = asyncio.create_task(slots.wanted.wait())
            try:
                await asyncio.wait({answering, wanted}, timeout=CALL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
                if wanted.done():
                    raise ProviderUnavailable("a turn's call needed the slot")
                raise ProviderStalled(f"no title within {CALL_SECONDS:g} s")
            finally:
                wanted.cancel()
                if not answering.done():
                    answering.cancel()
                    await unbroken(asyncio.wait({answering}))
        finally:
            slots.release()

    async def _record(self, start: TitleStart, suggested: TitleSuggested) -> None:
        async with self._database.write() as transaction:
            if await written(transaction.connection, start.session_id, KEY):
                return
            titles = Titles(transaction.connection, start.workspace_id)
            drafts = [Draft(suggested)]
            if suggested.title is not None and await titles.suggest(start.session_id, suggested.title):
                drafts.append(Draft(SessionUpdated(title=suggested.title)))
            else:
                await titles.give_up(start.session_id)
            journal = Journal(transaction.connection, transaction.appended)
            await journal.append(start.session_id, None, drafts, key=KEY, key_is_new=True)

    async def _give_up(self, start: TitleStart) -> None:
        async with self._database.write() as transaction:
            await Titles(transaction.connection, start.workspace_id).give_up(start.session_id)


def _later(error: ProviderError) -> ApplicationError:
    pause = error.retry_after_seconds
    return ApplicationError(
        error.message,
        type=error.code,
        category=ApplicationErrorCategory.BENIGN,
        next_retry_delay=None if pause is None else timedelta(seconds=pause),
    )


def _is_last() -> bool:
    info = activity.info()
    policy = info.retry_policy
    return policy is not None and bool(policy.maximum_attempts) and info.attempt >= policy.maximum_attempts
