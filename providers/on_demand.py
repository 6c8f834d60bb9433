"""A provider that is made when it is first called."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from domain.completions import Completion, CompletionRequest, Delta, ModelInfo, Provider


class OnDemand:
    """Spares every start the vendor's package, which takes half a second to load and tens of MB, where nobody calls the vendor.

    `make` loads it, beside the event loop.
    """

    def __init__(self, kind: str, make: Callable[[], Provider]) -> None:
        self.kind = kind
        self._make = make
        self._made: Provider | None = None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        provider = await self._provider()
        async with aclosing(provider.stream(request)) as items:
            async for item in items:
                yield item

    async def models(self) -> tuple[ModelInfo, ...]:
        return await (await self._provider()).models()

    async def close(self) -> None:
        if self._made is not None:
            await self._made.close()

    async def _provider(self) -> Provider:
        if self._made is None:
            made = await asyncio.to_thread(self._make)
            self._made = self._made or made  # of two first calls at once, one is faster
        return self._made
