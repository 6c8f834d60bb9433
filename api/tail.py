"""Following a session: one tailer per session reads the log once and fans out to all its viewers."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field

from api.frames import Frame, deleted, delta, durable, start
from api.mailbox import Mailbox
from domain.errors import Unavailable
from domain.events import RUN_OVER_TYPES, Event
from domain.sdk_events import CROSS_POSTED
from live.bus import Frame as BusFrame
from live.bus import LiveBus, Preview, PreviewsClosed, Wake, Writing
from storage.database import Database
from storage.journal import last_seqs, read

log = logging.getLogger(__name__)

PAGE = 500
QUEUE = 1000
"""Frames a viewer may lag behind before it goes back to reading the log."""
SHORTEST_POLL_SECONDS = 0.25
RETRY_SECONDS = 0.5
"""Between attempts to read the log while the database is away."""

CLOSING = frozenset({"span.model_request_end"}) | RUN_OVER_TYPES
"""Events behind which nothing of a run's text is being written any more: it is in the log, or void."""
_MARKS = CLOSING | {"run.queued"}
_NEVER = "~"  # sorts behind every id


@dataclass(eq=False)
class Viewer:
    """What one stream wants, what it has had, and the frames on their way to it."""

    after: int
    run_id: str | None = None
    primary: bool = False
    """Only the primary thread, and the states of the others."""
    subagents: Set[str] = frozenset()
    """The runs that are known to be on threads of their own."""
    types: frozenset[str] | None = None
    previews: frozenset[str] = frozenset({"agent.message", "agent.thinking"})
    sent: dict[str, int] = field(default_factory=dict[str, int])
    """How many characters it has had of each event that is being written."""
    writers: dict[str, str] = field(default_factory=dict[str, str])
    """The runs that write them. Of what its cursor said it is not known until there is more of it."""
    queue: "Mailbox[Frame | None]" = field(default_factory=lambda: Mailbox[Frame | None]())
    behind: bool = False
    ended: bool = False

    def end(self) -> None:
        """Its stream ends, wherever it is."""
        self.ended = True
        self.queue.put(None)

    @property
    def cursor(self) -> str:
        """Resumes right here, also inside texts that are being written."""
        return ".".join([str(self.after), *(f"{event_id}.{length}" for event_id, length in self.sent.items())])

    def wants(self, frame: Frame) -> bool:
        if self.run_id is not None and frame.run_id != self.run_id:
            return False
        if self.primary and frame.run_id in self.subagents and frame.type not in CROSS_POSTED:
            return False
        if frame.preview is not None:
            return frame.preview.type in self.previews
        return self.types is None or frame.type in self.types

    def push(self, frame: Frame | None) -> None:
        """None: the tailer ends."""
        if len(self.queue) == QUEUE:
            self.behind = True
        elif not self.behind:
            self.queue.put(frame)

    def passes(self, frame: Frame) -> None:
        """Move behind a durable frame."""
        assert frame.seq is not None
        self.after = frame.seq
        if frame.type in CLOSING:
            # Not what other runs write, nor what was begun behind it: after a lost wake-up the next call's text may be here
            # before this event.
            for event_id in [id for id in self.sent if id < frame.event_id]:
                if self.writers.get(event_id, self.run_id) == frame.run_id:
                    del self.sent[event_id]
                    self.writers.pop(event_id, None)

    def unseen(self, frame: Frame) -> Iterator[Frame]:
        """What it has not had yet of a preview; an `event_start` comes before an event's first piece."""
        preview = frame.preview
        assert preview is not None
        if preview.event_id not in self.sent:
            self.sent[preview.event_id] = 0
            yield start(preview)
        self.writers[preview.event_id] = preview.run_id
        had = self.sent[preview.event_id]
        end = preview.offset + len(preview.text)
        if end <= had:
            return
        self.sent[preview.event_id] = end
        if had == preview.offset:
            yield frame
        else:
            rest = preview.text[had - preview.offset :]
            yield delta(Preview(preview.run_id, preview.event_id, preview.type, had, rest))


class Tail:
    """The tailer of one session. It keeps its own account of the text being written, in step with what it has broadcast:
    the bus may be ahead of it, and a viewer that joined with the bus's account would see the difference twice."""

    def __init__(self, database: Database, live: LiveBus, session_id: str, position: int) -> None:
        self._database = database
        self._live = live
        self._session_id = session_id
        self._inbox = Mailbox[BusFrame]()
        self._closed: dict[str, str] = {}
        """By run: what was begun before this event id is in the log or void. Ids sort by time."""
        self.subagents: set[str] = set()
        self._opened = False
        self._moved: asyncio.Event | None = None
        """Where somebody waits for the position to move."""
        self.dead = False
        self.position = position
        self.viewers: set[Viewer] = set()
        self._writing: dict[str, Writing] = {}
        self._unsubscribe = live.subscribe(session_id, self._inbox.put)
        self._task = asyncio.create_task(self._follow())
        self._task.add_done_callback(self._died)

    def close(self) -> None:
        self._unsubscribe()
        self._task.cancel()

    def tell(self, seq: int) -> None:
        """The log is known to reach to `seq`."""
        if seq > self.position:
            self._inbox.put(Wake(seq))

    def snapshot(self) -> list[Preview]:
        """The text being written, up to what has been broadcast."""
        return [event.whole() for event in self._writing.values()]

    async def caught_up(self, seq: int) -> None:
        """Wait until the log has been read to `seq`: before that, a snapshot may hold text that is final at `seq`."""
        self.tell(seq)
        while not self.dead and not (self._opened and self.position >= seq):
            self._moved = self._moved or asyncio.Event()
            await self._moved.wait()

    async def _follow(self) -> None:
        await self._patiently(self._read_on)  # what was appended between the caller's look at the log and our subscription
        self._opened = True
        self._tell_waiting()
        while True:
            match await self._inbox.get():
                case Wake(events=events) if events and events[0].seq == self.position + 1:
                    self._pass_on(events)
                case Wake(seq=seq):
                    if seq > self.position:
                        await self._patiently(self._read_on)
                case Preview() as frame:
                    await self._take(frame)
                case PreviewsClosed(run_id=run_id):
                    self._drop(run_id, _NEVER)

    async def _patiently(self, reading: Callable[[], Awaitable[None]]) -> None:
        """Until it succeeds: what was published later must not overtake what is in the log."""
        while True:
            try:
                await reading()
            except Unavailable as error:
                log.warning("the log of %s cannot be read, trying again: %s", self._session_id, error.message)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _read_on(self) -> None:
        while True:
            async with self._database.read() as connection:
                events = await read(connection, self._session_id, after=self.position, limit=PAGE)
            self._pass_on(events)
            if len(events) < PAGE:
                return

    def _pass_on(self, events: Sequence[Event]) -> None:
        for event in events:
            self._writing.pop(event.id, None)
            if event.run_id is not None and event.thread_id is not None:
                self.subagents.add(event.run_id)
            if event.run_id is not None and event.type in _MARKS:
                self._mark(event.run_id, event)
            self._broadcast(durable(event))
            self.position = event.seq
        self._tell_waiting()

    async def _take(self, preview: Preview) -> None:
        writing = self._writing.get(preview.event_id)
        if writing is not None:
            new = writing.take(preview)
        elif preview.offset == 0 and not await self._overtaken(preview):
            self._writing[preview.event_id] = Writing(preview)
            new = preview
        else:
            return
        if new is not None:
            self._broadcast(delta(new))

    async def _overtaken(self, preview: Preview) -> bool:
        """Whether the log has overtaken it. The bus may show as being written what is final or void before our position,
        where nobody reads any more: the first time we hear of a run, look."""
        if preview.run_id not in self._closed:
            await self._patiently(lambda: self._look_back(preview.run_id))
        return preview.event_id <= self._closed[preview.run_id]

    async def _look_back(self, run_id: str) -> None:
        async with self._database.read() as connection:
            newest = await read(connection, self._session_id, run_id=run_id, types=_MARKS, descending=True, limit=1)
        self._closed[run_id] = ""
        for event in newest:
            if event.thread_id is not None:
                self.subagents.add(run_id)
            self._mark(run_id, event)

    def _mark(self, run_id: str, event: Event) -> None:
        # A run that is over writes nothing more, even if a model call does not know it yet; a retry brings it back.
        before = _NEVER if event.type in RUN_OVER_TYPES else event.id
        self._closed[run_id] = before
        self._drop(run_id, before)

    def _drop(self, run_id: str, before: str) -> None:
        for event_id in [id for id, event in self._writing.items() if event.run_id == run_id and id < before]:
            del self._writing[event_id]

    def _broadcast(self, frame: Frame) -> None:
        for viewer in self.viewers:
            if viewer.wants(frame):
                viewer.push(frame)

    def _tell_waiting(self) -> None:
        if self._moved is not None:
            self._moved.set()
            self._moved = None

    def _died(self, task: "asyncio.Task[None]") -> None:
        """End the streams, rather than let them stand still: viewers reconnect, and get a new tailer."""
        self.dead = True
        self._unsubscribe()
        if not task.cancelled():
            log.error("the tailer of %s died", self._session_id, exc_info=task.exception())
        self._tell_waiting()
        self._end()

    def end(self) -> None:
        """End all streams in good order."""
        self.dead = True
        self._tell_waiting()
        self._end()

    def deleted(self) -> None:
        """The session is gone: say so, and end all streams."""
        frame = deleted(self._session_id)
        for viewer in self.viewers:
            viewer.push(frame)
        self.end()

    def _end(self) -> None:
        for viewer in self.viewers:
            viewer.push(None)


class Tails:
    """All tailers of a process."""

    def __init__(self, database: Database, live: LiveBus) -> None:
        self._database = database
        self._live = live
        self._tails: dict[str, Tail] = {}
        self._polling: asyncio.Task[None] | None = None
        self.leaving = False

    def leave(self) -> None:
        """The process is about to end: every stream ends now, and new ones end at once."""
        self.leaving = True
        for tail in self._tails.values():
            tail.end()

    def deleted(self, session_id: str) -> None:
        """End the session's streams here and now; those of other processes find it out when they look."""
        if tail := self._tails.get(session_id):
            tail.deleted()

    async def follow(self, session_id: str, viewer: Viewer, last_seq: int) -> AsyncGenerator[Frame | None, None]:
        """Frames after the viewer's cursor: the log first, then live; complete, in order, without repeats.

        None: the next frame is not there yet; what comes between two of them may be sent together. `last_seq` is the log's end
        as the caller has just read it. Close it; it ends by itself when the process is about to end, or something is broken.
        """
        if self.leaving:
            return
        tail = self._tails.get(session_id)
        if tail is None or tail.dead:
            tail = self._tails[session_id] = Tail(self._database, self._live, session_id, last_seq)
            if self._polling is None or self._polling.done():
                self._polling = asyncio.create_task(self._poll())
        tail.viewers.add(viewer)
        viewer.subagents = tail.subagents
        try:
            await tail.caught_up(last_seq)
            while not (tail.dead or viewer.ended):
                # Nothing is awaited between these lines: what is broadcast from here on is in the queue.
                viewer.behind, viewer.queue = False, Mailbox()
                until, writing = tail.position, tail.snapshot()
                async for frame in self._log(session_id, viewer, until):
                    yield frame
                for preview in writing:
                    if viewer.wants(frame := delta(preview)):
                        for piece in viewer.unseen(frame):
                            yield piece
                while viewer.queue or not viewer.behind:
                    if not viewer.queue:
                        yield None
                    frame = await viewer.queue.get()
                    if frame is None:
                        return
                    if frame.seq is not None:
                        viewer.passes(frame)
                        yield frame
                    elif frame.preview is None:
                        yield frame
                    else:
                        for piece in viewer.unseen(frame):
                            yield piece
        finally:
            tail.viewers.discard(viewer)
            if not tail.viewers and self._tails.get(session_id) is tail:
                del self._tails[session_id]
                tail.close()

    async def _poll(self) -> None:
        """A wake-up may have been lost, or be another process's: see for all sessions at once, as long as any is followed.

        One by one it would take a whole core for two thousand.
        """
        waited = 0.0
        while self._tails:
            # In short pieces, for it may become more urgent meanwhile.
            pause = min(self._live.poll_seconds, SHORTEST_POLL_SECONDS)
            await asyncio.sleep(pause)
            waited += pause
            if waited < self._live.poll_seconds:
                continue
            waited = 0.0
            followed = list(self._tails)
            for begin in range(0, len(followed), PAGE):
                asked = followed[begin : begin + PAGE]
                try:
                    async with self._database.read() as connection:
                        ends = dict(await last_seqs(connection, asked))
                except Unavailable as error:
                    log.warning("the ends of the logs cannot be read, trying again: %s", error.message)
                    continue
                for session_id in asked:
                    if session_id not in ends:
                        self.deleted(session_id)
                    elif tail := self._tails.get(session_id):
                        tail.tell(ends[session_id])
        self._polling = None

    async def _log(self, session_id: str, viewer: Viewer, until: int) -> AsyncIterator[Frame | None]:
        while viewer.after < until and not viewer.ended:
            yield None
            try:
                async with self._database.read() as connection:
                    events = await read(
                        connection,
                        session_id,
                        after=viewer.after,
                        before=until + 1,
                        limit=PAGE,
                        run_id=viewer.run_id,
                        types=viewer.types,
                        primary=CROSS_POSTED if viewer.primary else None,
                    )
            except Unavailable as error:
                log.warning("the log of %s cannot be read, trying again: %s", session_id, error.message)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            for event in events:
                if self.leaving or viewer.ended:
                    return
                viewer.passes(frame := durable(event))
                yield frame
            if len(events) < PAGE:
                viewer.after = until
