"""A viewer that outlives every API process: it reconnects from its last id, and checks each frame against what it has had."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import httpx2

from tests.durability.process import Story
from tests.service import Frame, parse


@dataclass(eq=False)
class ChaosViewer:
    """`path` is a stream that begins at seq 1. It ends with `done`, or when it is told to."""

    http: httpx2.AsyncClient
    path: str
    story: Story = field(default_factory=Story)
    connections: int = 0
    ends_with: Callable[[Frame], bool] = lambda _: False

    async def watch(self) -> None:
        while not self.story.done:
            try:
                await self._connection()
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)

    async def _connection(self) -> None:
        headers = {"Last-Event-ID": self.story.frames[-1].id} if self.story.frames else {}
        async with self.http.stream("GET", self.path, headers=headers) as response:
            if response.status_code == 503:
                await asyncio.sleep(0.2)
                return
            if response.status_code != 200:
                self.story.faults.append(f"HTTP {response.status_code}: {(await response.aread())[:200]!r}")
                await asyncio.sleep(1)
                return
            self.connections += 1
            async for frame in _frames(response):
                self.story.take(frame)
                if self.ends_with(frame):
                    self.story.done = True
                    return


async def _frames(response: httpx2.Response) -> AsyncIterator[Frame]:
    lines: list[str] = []
    async for line in response.aiter_lines():
        lines.append(line)
        if not line:
            for frame in parse(lines):
                yield frame
            lines = []
