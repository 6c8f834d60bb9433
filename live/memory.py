"""The live bus of one process: wake-ups, the text being written right now, and stop flags. Never the truth."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from domain.events import Event

PreviewType = Literal["agent.message", "agent.thinking"]


@dataclass(frozen=True)
class Wake:
    """The session's log has grown to `seq`; by `events`, where they are known here, so that nobody need read them."""

    seq: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Preview:
    """A piece of an event being written: `text` begins `offset` characters into it."""

    run_id: str
    event_id: str
    type: PreviewType
    offset: int
    text: str


class Writing:
    """An event being written, as far as it has got. Pieces are kept apart: joining at each would be quadratic."""

    def __init__(self, first: Preview) -> None:
        self._first = first
        self._pieces = [first.text]
        self.length = len(first.text)

    @property
    def run_id(self) -> str:
        return self._first.run_id

    @property
    def event_id(self) -> str:
        return self._first.event_id

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self.length += len(text)

    def whole(self) -> Preview:
        return Preview(self.run_id, self.event_id, self._first.type, 0, "".join(self._pieces))


@dataclass(frozen=True)
class PreviewsClosed:
    """A model call has ended: what it had begun is in the log by now, or void."""

    run_id: str


Frame = Wake | Preview | PreviewsClosed
Listener = Callable[[Frame], None]


class LiveBus:
    """Publish and subscribe by session id. Everything runs on one event loop and nothing blocks."""

    def __init__(self) -> None:
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._writing: defaultdict[str, dict[str, Writing]] = defaultdict(dict)
        self._stops: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def answers(self) -> bool | None:
        """Whether the bus can be reached; None where it is this process's own memory."""
        return None

    def wake(self, session_id: str, events: Sequence[Event]) -> None:
        """Tell that these events, consecutive and committed, were appended."""
        self._tell(session_id, Wake(events[-1].seq, tuple(events)))

    def write(self, session_id: str, run_id: str, event_id: str, type: PreviewType, text: str) -> None:
        """Add text to the preview of an event; the first piece opens it."""
        before = self._writing[session_id].get(event_id)
        piece = Preview(run_id, event_id, type, 0 if before is None else before.length, text)
        if before is None:
            self._writing[session_id][event_id] = Writing(piece)
        else:
            before.add(text)
        self._tell(session_id, piece)

    def close_previews(self, session_id: str, run_id: str) -> None:
        writing = self._writing.get(session_id)
        if writing is None:
            return
        for event_id in [id for id, event in writing.items() if event.run_id == run_id]:
            del writing[event_id]
        if not writing:
            del self._writing[session_id]
        self._tell(session_id, PreviewsClosed(run_id))

    def writing(self, session_id: str) -> tuple[Preview, ...]:
        """The whole text so far of every event being written in the session."""
        return tuple(event.whole() for event in self._writing.get(session_id, {}).values())

    def subscribe(self, session_id: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every frame of the session until the returned function is called."""
        self._listeners[session_id].add(listener)

        def unsubscribe() -> None:
            self._listeners[session_id].discard(listener)
            if not self._listeners[session_id]:
                del self._listeners[session_id]

        return unsubscribe

    def stop(self, run_id: str) -> None:
        """Ask whatever model call of the run is in flight here to stop. Temporal's cancellation says the same, later."""
        for event in self._stops.get(run_id, ()):
            event.set()

    @contextmanager
    def stoppable(self, run_id: str) -> Generator[asyncio.Event]:
        """An event that is set when `stop(run_id)` is called inside the block."""
        event = asyncio.Event()
        self._stops[run_id].add(event)
        try:
            yield event
        finally:
            self._stops[run_id].discard(event)
            if not self._stops[run_id]:
                del self._stops[run_id]

    def _tell(self, session_id: str, frame: Frame) -> None:
        for listener in tuple(self._listeners.get(session_id, ())):
            listener(frame)
