"""The bus on Redis: what is written in one process is seen in another, whatever happens to Redis in between."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest

from live import redis as module
from live.bus import Frame, Preview, PreviewsClosed, Wake, Writing
from live.redis import RedisBus, redis_bus
from tests.redis import PROGRAM, RedisServer

pytestmark = [pytest.mark.single_database, pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")]
SESSION, RUN, EVENT = "sesn_1", "run_1", "sevt_1"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@dataclass(eq=False)
class Listener:
    frames: list[Frame] = field(default_factory=list[Frame])
    writing: dict[str, Writing] = field(default_factory=dict[str, Writing])

    def __call__(self, frame: Frame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Preview):
            if frame.event_id in self.writing:
                self.writing[frame.event_id].take(frame)
            elif frame.offset == 0:
                self.writing[frame.event_id] = Writing(frame)

    def text(self, event_id: str = EVENT) -> str:
        return self.writing[event_id].whole().text if event_id in self.writing else ""


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def write(bus: RedisBus, text: str) -> None:
    bus.write(SESSION, RUN, EVENT, "agent.message", text)


async def test_what_one_process_writes_another_reads_from_its_beginning(server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        writer, reader = [await stack.enter_async_context(redis_bus(server.url)) for _ in range(2)]
        early, late, after = Listener(), Listener(), Listener()
        reader.subscribe(SESSION, early)
        write(writer, "Grüße, ")
        await until(lambda: early.text() == "Grüße, ")
        write(writer, "Welt 🌍 \ud800")
        await until(lambda: early.text() == "Grüße, Welt 🌍 \ud800")
        reader.subscribe(SESSION, late)
        await until(lambda: late.text() == early.text())
        assert late.frames[0] == Preview(RUN, EVENT, "agent.message", 0, early.text()), "in one piece"

        writer.close_previews(SESSION, RUN)
        await until(lambda: PreviewsClosed(RUN) in late.frames)
        reader.subscribe("sesn_2", after)
        reader.subscribe(SESSION, after)
        write(writer, "new")  # ends the wait below: nothing of the old text came before it
        await until(lambda: bool(after.text()))
        assert after.text() == "new"


async def test_a_stop_reaches_the_process_that_runs(server: RedisServer) -> None:
    async with redis_bus(server.url) as one, redis_bus(server.url) as other:
        await until(lambda: one.poll_seconds > 1 and other.poll_seconds > 1)
        with other.stoppable(RUN) as stop, other.stoppable("run_2") as spared:
            one.stop(RUN)
            await asyncio.wait_for(stop.wait(), 5)
            assert not spared.is_set()


async def test_while_redis_is_away_readers_poll_and_afterwards_nothing_is_missing(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)
    async with redis_bus(server.url) as writer, redis_bus(server.url) as reader:
        listener = Listener()
        reader.subscribe(SESSION, listener)
        write(writer, "one ")
        await until(lambda: listener.text() == "one ")
        assert (await reader.answers(), reader.poll_seconds) == (True, 5.0)

        server.kill()
        await until(lambda: reader.poll_seconds < 1)
        assert await reader.answers() is False
        assert any(isinstance(frame, Wake) for frame in listener.frames), "told to look at the log"
        write(writer, "two ")
        await asyncio.sleep(0.2)
        write(writer, "three ")
        server.start()
        await until(lambda: reader.poll_seconds > 1)
        write(writer, "four")
        await until(lambda: listener.text() == "one two three four")
        late = Listener()
        reader.subscribe(SESSION, late)
        await until(lambda: late.text() == "one two three four")


async def test_a_redis_that_is_never_there_holds_nobody_up() -> None:
    async with redis_bus("redis://127.0.0.1:1/0") as bus:
        write(bus, "unheard")
        bus.stop(RUN)
        bus.close_previews(SESSION, RUN)
        with bus.stoppable(RUN) as stop:
            bus.stop(RUN)
            assert stop.is_set(), "a stop in the same process needs no Redis"
        assert await bus.answers() is False


async def test_who_is_cancelled_again_while_it_ends_leaves_nobody_behind() -> None:
    """The first cancellation is swallowed, as by redis-py; the loop around cancels again before the one inside is done."""
    before = asyncio.all_tasks()

    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        raise ConnectionError("closed")

    async def listening() -> None:
        tasks = [asyncio.create_task(stubborn()) for _ in range(2)]
        try:
            await asyncio.wait(tasks)
        finally:
            await module.end(tasks)

    outer = asyncio.create_task(listening())
    await asyncio.sleep(0.05)
    await module.end([outer])
    assert asyncio.all_tasks() == before
