"""A provider's limit of calls at once in this worker, and whose turn it is."""

import asyncio
from collections import deque


class Slots:
    """First come, first served; but calls in the background come last, and never have the last slot.

    A batch keeps more calls waiting than a provider takes. Temporal's priorities end where a call has reached its worker:
    here, in one line with them, somebody who waits for an answer would wait for the batch.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._kept = 1 if count > 1 else 0
        self.wanted = asyncio.Event()
        """Set while a call waits: whoever holds a slot for what can be done later is to give it up."""
        self._waiting: tuple[deque[asyncio.Future[None]], deque[asyncio.Future[None]]] = (deque(), deque())

    def take(self, *, background: bool) -> bool:
        """Take one if there is one."""
        # Nobody is passed over: a slot that anybody in line may have was given to them when it came free.
        if self._free <= (self._kept if background else 0):
            return False
        self._free -= 1
        return True

    async def wait(self, *, background: bool) -> None:
        """Wait in line for one."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        line = self._waiting[background]
        line.append(place)
        self.wanted.set()
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release()  # it came in the same moment
            raise
        finally:
            if all(other.done() for line in self._waiting for other in line):
                self.wanted.clear()

    def release(self) -> None:
        self._free += 1
        for background, line in enumerate(self._waiting):
            while line and (line[0].done() or self.take(background=bool(background))):
                if not (place := line.popleft()).done():  # else whoever stood there was cancelled
                    place.set_result(None)
