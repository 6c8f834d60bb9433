"""Following a session: one tailer per session reads the log once and fans out to all its viewers."""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from domain.events import SDK_TYPES, Event
from live.memory import Frame as BusFrame
from live.memory import LiveBus, Preview, PreviewType, Wake
from storage.database import Database
from storage.journal import read

PAGE = 500
QUEUE = 1000
"""Frames a viewer may lag behind before it goes back to reading the log."""
_REMEMBERED = 256


@dataclass(frozen=True)
class Frame:
    """One SSE event. Encoded once, whoever it is sent to."""

    type: str
    run_id: str | None
    content: dict[str, Any]
    seq: int | None = None
    """None for previews, which no log remembers."""
    event_id: str = ""
    offset: int = 0
    preview: PreviewType | None = None
    """The type of the event that is being written, for previews."""

    @cached_property
    def data(self) -> str:
        return json.dumps(self.content, ensure_ascii=False, separators=(",", ":"))

    @cached_property
    def sdk_data(self) -> str:
        return json.dumps(_for_sdk(self.content), ensure_ascii=False, separators=(",", ":"))


@dataclass(eq=False)
class Viewer:
    """What one stream wants, and the frames on their way to it."""

    after: int
    run_id: str | None = None
    types: frozenset[str] | None = None
    previews: frozenset[str] = frozenset({"agent.message", "agent.thinking"})
    resume_event: str | None = None
    resume_offset: int = 0
    queue: "asyncio.Queue[Frame]" = field(default_factory=lambda: asyncio.Queue[Frame](QUEUE))
    behind: bool = False
    opened: set[str] = field(default_factory=set[str])

    def wants(self, frame: Frame) -> bool:
        if self.run_id is not None and frame.run_id != self.run_id:
            return False
        if frame.seq is None:
            return frame.preview in self.previews
        return self.types is None or frame.type in self.types

    def push(self, frame: Frame) -> None:
        if self.behind:
            return
        try:
            self.queue.put_nowait(frame)
        except asyncio.QueueFull:
            self.behind = True


class Tail:
    """The tailer of one session."""

    def __init__(self, database: Database, live: LiveBus, session_id: str, position: int, poll_seconds: float) -> None:
        self._database = database
        self._live = live
        self._session_id = session_id
        self._poll_seconds = poll_seconds
        self._inbox: asyncio.Queue[BusFrame] = asyncio.Queue()
        self._finished: deque[str] = deque(maxlen=_REMEMBERED)
        self.position = position
        self.viewers: set[Viewer] = set()
        self._unsubscribe = live.subscribe(session_id, self._inbox.put_nowait)
        # What was appended between the caller's look at the log and this subscription woke nobody here.
        self._inbox.put_nowait(Wake(position + 1))
        self._task = asyncio.create_task(self._follow())

    def close(self) -> None:
        self._unsubscribe()
        self._task.cancel()

    def snapshot(self) -> list[Preview]:
        """The text being written right now; what the log already has is left out."""
        return [preview for preview in self._live.writing(self._session_id) if preview.event_id not in self._finished]

    async def _follow(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._poll_seconds):
                    frame = await self._inbox.get()
            except TimeoutError:
                frame = Wake(self.position + 1)  # a wake-up may have been lost, or come from another process
            match frame:
                case Wake(seq=seq) if seq > self.position:
                    with contextlib.suppress(Exception):  # the database is away: the next wake-up or poll reads on
                        await self._read_on()
                case Preview():
                    self._broadcast(_preview(frame))
                case _:
                    pass

    async def _read_on(self) -> None:
        while True:
            async with self._database.read() as connection:
                events = await read(connection, self._session_id, after=self.position, limit=PAGE)
            for event in events:
                self._finished.append(event.id)
                self._broadcast(durable(event))
                self.position = event.seq
            if len(events) < PAGE:
                return

    def _broadcast(self, frame: Frame) -> None:
        for viewer in self.viewers:
            if viewer.wants(frame):
                viewer.push(frame)


class Tails:
    """All tailers of a process. `poll_seconds`: how often the log is read without a wake-up."""

    def __init__(self, database: Database, live: LiveBus, poll_seconds: float) -> None:
        self._database = database
        self._live = live
        self._poll_seconds = poll_seconds
        self._tails: dict[str, Tail] = {}

    async def follow(self, session_id: str, viewer: Viewer, last_seq: int) -> AsyncIterator[Frame]:
        """Frames after the viewer's cursor: the log first, then live; complete, in order, without repeats.

        `last_seq` is the log's end as the caller has just read it. Ends never; close it.
        """
        tail = self._tails.get(session_id)
        if tail is None:
            tail = self._tails[session_id] = Tail(self._database, self._live, session_id, last_seq, self._poll_seconds)
        tail.viewers.add(viewer)
        try:
            while True:
                # Nothing is awaited between these lines: what is broadcast from here on is in the queue.
                viewer.behind, viewer.queue = False, asyncio.Queue(QUEUE)
                until, writing = tail.position, tail.snapshot()
                async for frame in self._log(session_id, viewer, until):
                    yield frame
                for preview in writing:
                    frame = _preview(preview)
                    if viewer.wants(frame) and (rest := _rest(frame, viewer)) is not None:
                        yield rest
                while not (viewer.behind and viewer.queue.empty()):
                    frame = await viewer.queue.get()
                    if frame.seq is not None:
                        if frame.seq <= viewer.after:
                            continue
                        viewer.after = frame.seq
                    yield frame
        finally:
            tail.viewers.discard(viewer)
            if not tail.viewers and self._tails.get(session_id) is tail:
                del self._tails[session_id]
                tail.close()

    async def _log(self, session_id: str, viewer: Viewer, until: int) -> AsyncIterator[Frame]:
        while viewer.after < until:
            async with self._database.read() as connection:
                events = await read(
                    connection,
                    session_id,
                    after=viewer.after,
                    before=until + 1,
                    limit=PAGE,
                    run_id=viewer.run_id,
                    types=viewer.types,
                )
            for event in events:
                viewer.after = event.seq
                yield durable(event)
            if len(events) < PAGE:
                viewer.after = until


def durable(event: Event) -> Frame:
    return Frame(type=event.type, run_id=event.run_id, content=event.wire(), seq=event.seq, event_id=event.id)


def _preview(preview: Preview) -> Frame:
    kind = "thinking" if preview.type == "agent.thinking" else "text"
    delta = {"type": "content_delta", "index": 0, "content": {"type": kind, kind: preview.text}}
    content = {"type": "event_delta", "event_id": preview.event_id, "delta": delta}
    return Frame(
        type="event_delta",
        run_id=preview.run_id,
        content=content,
        event_id=preview.event_id,
        offset=preview.offset,
        preview=preview.type,
    )


def _rest(frame: Frame, viewer: Viewer) -> Frame | None:
    """What a viewer that comes back has not seen yet of the text being written."""
    if frame.event_id != viewer.resume_event or viewer.resume_offset == 0:
        return frame
    viewer.opened.add(frame.event_id)
    content = frame.content["delta"]["content"]
    kind = content["type"]
    rest = content[kind][viewer.resume_offset :]
    if not rest:
        return None
    delta = {**frame.content["delta"], "content": {"type": kind, kind: rest}}
    return Frame(
        type=frame.type,
        run_id=frame.run_id,
        content={**frame.content, "delta": delta},
        event_id=frame.event_id,
        offset=viewer.resume_offset,
        preview=frame.preview,
    )


_SDK_STOPS = {
    "end_turn": "end_turn",
    "requires_action": "requires_action",
    "interrupted": "end_turn",
    "refusal": "refusal",
    "error": "retries_exhausted",
    "retries_exhausted": "retries_exhausted",
}


def _for_sdk(content: dict[str, Any]) -> dict[str, Any]:
    """Stop reasons in the words that the `anthropic` package knows."""
    if content["type"] != "session.status_idle":
        return content
    stop = _SDK_STOPS.get(content["stop_reason"]["type"], "budget_reached")
    return {**content, "stop_reason": {"type": stop}}


def sdk_types(types: Iterable[str] | None) -> frozenset[str]:
    """The types that callers with `anthropic-beta` get."""
    return SDK_TYPES if types is None else SDK_TYPES & frozenset(types)
