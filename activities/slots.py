"""A provider's limit of model calls at once."""

import asyncio
from typing import Literal


class Slots(asyncio.Semaphore):
    """`wanted` is set while a call waits for a slot: whoever holds one for what can wait is to give it up."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.wanted = asyncio.Event()
        self._waiting = 0

    async def acquire(self) -> Literal[True]:
        if not self.locked():
            return await super().acquire()
        self._waiting += 1
        self.wanted.set()
        try:
            return await super().acquire()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.wanted.clear()
