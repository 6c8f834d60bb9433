"""The live bus of many processes, on Redis or Valkey.

Frames travel by PUBLISH on a channel per session. What is being written is kept beside it, as the list of its pieces, so that
a viewer that joins at any API process gets the text from its beginning. Whatever is lost with a connection is said again once
there is one: senders send the whole of what they are writing, listeners are told to look at the log.
"""

# redis leaves its keyword arguments untyped
# pyright: reportUnknownMemberType=false

import asyncio
import json
import logging
import sys
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline, PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from domain.events import Event
from live.bus import Frame, Listener, OpenTexts, Preview, PreviewsClosed, PreviewType, Wake, Writing
from live.memory import EMBEDDED_POLL_SECONDS, SEPARATE_POLL_SECONDS
from live.stops import Stops

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
PING_SECONDS = 5.0
"""A silent connection is asked for a sign of life this often; twice without one, it is given up."""
KEPT_SECONDS = 86_400
"""How long the text of a call stays whose worker died and that nobody took up again."""
_STOPS = "perdure:stops"
_CHANNEL = "perdure:live:"


class RedisBus:
    """Open it with `redis_bus`. While Redis is away nothing is told, and readers look at the log by themselves."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._touched: asyncio.Queue[str] = asyncio.Queue()
        """Sessions that have a first listener, another one, or none any more."""
        self._hearing = False
        self._open = OpenTexts()
        self._pending: defaultdict[str, list[Frame]] = defaultdict(list)
        self._pending_stops: list[str] = []
        self._something = asyncio.Event()
        self._stops = Stops()

    @property
    def poll_seconds(self) -> float:
        return EMBEDDED_POLL_SECONDS if self._hearing else SEPARATE_POLL_SECONDS

    async def answers(self) -> bool:
        try:
            async with asyncio.timeout(1):
                await self._redis.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    def wake(self, session_id: str, events: Sequence[Event]) -> None:
        self._send(session_id, Wake(events[-1].seq))

    def write(self, session_id: str, run_id: str, event_id: str, type: PreviewType, text: str) -> None:
        self._send(session_id, self._open.add(session_id, run_id, event_id, type, text))

    def close_previews(self, session_id: str, run_id: str) -> None:
        if self._open.close(session_id, run_id):
            self._send(session_id, PreviewsClosed(run_id))

    def subscribe(self, session_id: str, listener: Listener) -> Callable[[], None]:
        self._listeners[session_id].add(listener)
        self._touched.put_nowait(session_id)

        def unsubscribe() -> None:
            self._listeners[session_id].discard(listener)
            if not self._listeners[session_id]:
                del self._listeners[session_id]
                self._touched.put_nowait(session_id)

        return unsubscribe

    def stop(self, run_id: str) -> None:
        self._stops.set(run_id)
        self._pending_stops.append(run_id)
        self._something.set()

    def stoppable(self, run_id: str) -> AbstractContextManager[asyncio.Event]:
        return self._stops.stoppable(run_id)

    def _send(self, session_id: str, frame: Frame) -> None:
        pending = self._pending[session_id]
        match pending[-1] if pending else None, frame:
            case Preview() as last, Preview() if last.event_id == frame.event_id:
                pending[-1] = Preview(last.run_id, last.event_id, last.type, last.offset, last.text + frame.text)
            case Wake(), Wake():
                pending[-1] = frame
            case _:
                pending.append(frame)
        self._something.set()

    async def sending(self) -> None:
        """Send what is to be told, as much at a time as has gathered."""
        away = False
        while True:
            await self._something.wait()
            self._something.clear()
            frames, self._pending = self._pending, defaultdict(list)
            stops, self._pending_stops = self._pending_stops, []
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for session_id, pending in frames.items():
                        for frame in pending:
                            _tell(pipeline, session_id, frame)
                    for run_id in stops:
                        pipeline.publish(_STOPS, run_id)
                    await pipeline.execute()
            except (RedisError, OSError) as error:
                if not away:
                    log.warning("the live bus is away, viewers see texts when they are complete: %s", error)
                away = True
                self._say_again(frames, stops)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                if away:
                    log.info("the live bus is back")
                away = False

    def _say_again(self, frames: dict[str, list[Frame]], stops: list[str]) -> None:
        """Nobody knows what arrived: tell again which calls ended, the newest seq, and the whole of what is being written."""
        later, self._pending = self._pending, defaultdict(list)
        for session_id in frames.keys() | later.keys():
            told = [*frames.get(session_id, ()), *later.get(session_id, ())]
            self._pending[session_id] += dict.fromkeys(f for f in told if isinstance(f, PreviewsClosed))
            if seqs := [f.seq for f in told if isinstance(f, Wake)]:
                self._pending[session_id].append(Wake(max(seqs)))
        for session_id in self._open.sessions():
            self._pending[session_id] += self._open.whole(session_id)
        self._pending_stops = [*stops, *self._pending_stops]
        self._something.set()

    async def listening(self) -> None:
        """Hear what others tell, again and again."""
        while True:
            try:
                async with self._redis.pubsub() as pubsub:
                    # Some channel, always: a connection without any cannot be listened to.
                    await pubsub.subscribe(_STOPS, *(_CHANNEL + session_id for session_id in self._listeners))
                    self._hearing = True
                    self._look_at_the_log()
                    await _until_one_fails(self._hear(pubsub), self._subscribing(pubsub))
            except (RedisError, OSError) as error:
                if self._hearing:
                    log.warning("the live bus is away, looking at the log instead: %s", error)
            self._hearing = False
            self._look_at_the_log()
            await asyncio.sleep(RETRY_SECONDS)

    async def _subscribing(self, pubsub: PubSub) -> None:
        while True:
            session_id = await self._touched.get()
            if session_id in self._listeners:
                await pubsub.subscribe(_CHANNEL + session_id)
            else:
                await pubsub.unsubscribe(_CHANNEL + session_id)

    async def _hear(self, pubsub: PubSub) -> None:
        silent = 0
        while True:
            message = cast(dict[str, Any] | None, await pubsub.get_message(timeout=PING_SECONDS))
            if message is None:
                silent += 1
                if silent > 2:
                    raise ConnectionError("no sign of life")
                await pubsub.ping()
                continue
            silent = 0
            channel, session_id = message["channel"], str(message["channel"]).removeprefix(_CHANNEL)
            match message["type"]:
                case "message" if channel == _STOPS:
                    self._stops.set(message["data"])
                case "message":
                    self._pass_on(session_id, _decode(message["data"]))
                case "subscribe" if channel != _STOPS:
                    # In here, so that what is published from now on waits behind it.
                    for event in await self._written(session_id):
                        self._pass_on(session_id, event.whole())
                case _:
                    pass

    async def _written(self, session_id: str) -> Iterable[Writing]:
        """What is being written in the session, whoever writes it."""
        writing: dict[str, Writing] = {}
        for run_id in cast(set[str], await self._redis.smembers(_runs(session_id))):
            for text in cast(list[str], await self._redis.lrange(_pieces(session_id, run_id), 0, -1)):
                piece = _decode(text)
                if isinstance(piece, Preview):
                    if piece.event_id in writing:
                        writing[piece.event_id].take(piece)
                    elif piece.offset == 0:
                        writing[piece.event_id] = Writing(piece)
        return writing.values()

    def _pass_on(self, session_id: str, frame: Frame | None) -> None:
        if frame is not None:
            for listener in tuple(self._listeners.get(session_id, ())):
                listener(frame)

    def _look_at_the_log(self) -> None:
        for listeners in tuple(self._listeners.values()):
            for listener in tuple(listeners):
                listener(Wake(sys.maxsize))


@asynccontextmanager
async def redis_bus(url: str) -> AsyncGenerator[RedisBus]:
    """A bus on the Redis at `url` (`redis://…`, `rediss://…`, `unix://…`), whether it answers yet or not."""
    # No retries in the client: it would repeat a command behind our back, after a reconnect that we must know of.
    redis = Redis.from_url(url, decode_responses=True, retry=Retry(NoBackoff(), 0), socket_timeout=5)
    bus = RedisBus(redis)
    tasks = [asyncio.create_task(bus.sending()), asyncio.create_task(bus.listening())]
    try:
        yield bus
    finally:
        await end(tasks)
        await redis.aclose()


async def _until_one_fails(*works: Coroutine[Any, Any, None]) -> None:
    # Not a TaskGroup: that forgets a cancellation which comes while one of its tasks fails.
    tasks = [asyncio.create_task(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await end(tasks)


async def end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    """Cancel until it helps: redis-py now and then swallows a cancellation that comes while it loses its connection.

    Who is cancelled meanwhile, perhaps by such a loop around it, still waits to the end: else what is left would be nobody's.
    """
    pending = set(tasks)
    cancelled = False
    while pending:
        for task in pending:
            task.cancel()
        try:
            done, pending = await asyncio.wait(pending, timeout=1)
        except asyncio.CancelledError:
            cancelled = True
            continue
        for task in done:
            if not task.cancelled():
                task.exception()  # else it is logged as never looked at
    if cancelled:
        raise asyncio.CancelledError


def _runs(session_id: str) -> str:
    """The key of the set of runs that are writing in a session."""
    return f"perdure:writing:{session_id}"


def _pieces(session_id: str, run_id: str) -> str:
    """The key of the list of what a run has written so far in the call it is in."""
    return f"perdure:writing:{session_id}:{run_id}"


def _tell(pipeline: Pipeline, session_id: str, frame: Frame) -> None:
    data = _encode(frame)
    match frame:
        case Preview(run_id=run_id, offset=offset):
            pipeline.rpush(_pieces(session_id, run_id), data)
            if offset == 0:
                pipeline.sadd(_runs(session_id), run_id)
                pipeline.expire(_pieces(session_id, run_id), KEPT_SECONDS)
                pipeline.expire(_runs(session_id), KEPT_SECONDS)
        case PreviewsClosed(run_id=run_id):
            pipeline.delete(_pieces(session_id, run_id))
            pipeline.srem(_runs(session_id), run_id)
        case Wake():
            pass
    pipeline.publish(_CHANNEL + session_id, data)


def _encode(frame: Frame) -> str:
    match frame:
        case Wake(seq=seq):
            return json.dumps({"seq": seq})
        case PreviewsClosed(run_id=run_id):
            return json.dumps({"closed": run_id})
        case Preview():
            return json.dumps([frame.run_id, frame.event_id, frame.type, frame.offset, frame.text])


def _decode(text: str) -> Frame | None:
    """None for what a newer version says: it is in the log, or will be."""
    match json.loads(text):
        case {"seq": int(seq)}:
            return Wake(seq)
        case {"closed": str(run_id)}:
            return PreviewsClosed(run_id)
        case [str(run_id), str(event_id), "agent.message" | "agent.thinking" as type, int(offset), str(piece)]:
            return Preview(run_id, event_id, type, offset, piece)
        case _:
            return None
