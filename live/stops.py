"""Stop flags of the calls in flight in this process."""

import asyncio
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager


class Stops:
    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    def set(self, run_id: str) -> None:
        for event in self._waiting.get(run_id, ()):
            event.set()

    @contextmanager
    def stoppable(self, run_id: str) -> Generator[asyncio.Event]:
        event = asyncio.Event()
        self._waiting[run_id].add(event)
        try:
            yield event
        finally:
            self._waiting[run_id].discard(event)
            if not self._waiting[run_id]:
                del self._waiting[run_id]
