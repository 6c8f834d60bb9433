"""The live bus of one process."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from domain.events import Event
from live.bus import Frame, Listener, OpenTexts, PreviewsClosed, PreviewType, Wake
from live.stops import Stops

EMBEDDED_POLL_SECONDS = 5.0
"""In one process every append wakes the streams; this only repairs a lost wake-up."""
SEPARATE_POLL_SECONDS = 0.25
"""Where other processes write and no bus joins them, the log is all there is to look at."""


class MemoryBus:
    """Everything runs on one event loop. `poll_seconds`: as in `live.bus.LiveBus`."""

    def __init__(self, poll_seconds: float = EMBEDDED_POLL_SECONDS) -> None:
        self.poll_seconds = poll_seconds
        self._listeners: defaultdict[str, set[Listener]] = defaultdict(set)
        self._open = OpenTexts()
        self._stops = Stops()

    async def answers(self) -> None:
        return None

    def wake(self, session_id: str, events: Sequence[Event]) -> None:
        self._tell(session_id, Wake(events[-1].seq, tuple(events)))

    def write(self, session_id: str, run_id: str, event_id: str, type: PreviewType, text: str) -> None:
        self._tell(session_id, self._open.add(session_id, run_id, event_id, type, text))

    def close_previews(self, session_id: str, run_id: str) -> None:
        if self._open.close(session_id, run_id):
            self._tell(session_id, PreviewsClosed(run_id))

    def subscribe(self, session_id: str, listener: Listener) -> Callable[[], None]:
        self._listeners[session_id].add(listener)
        for preview in self._open.whole(session_id):
            listener(preview)

        def unsubscribe() -> None:
            self._listeners[session_id].discard(listener)
            if not self._listeners[session_id]:
                del self._listeners[session_id]

        return unsubscribe

    def stop(self, run_id: str) -> None:
        self._stops.set(run_id)

    def stoppable(self, run_id: str) -> AbstractContextManager[asyncio.Event]:
        return self._stops.stoppable(run_id)

    def _tell(self, session_id: str, frame: Frame) -> None:
        for listener in tuple(self._listeners.get(session_id, ())):
            listener(frame)
