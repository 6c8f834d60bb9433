"""What stands for a vendor without a key."""

from collections.abc import AsyncGenerator

from domain.completions import Completion, CompletionRequest, Delta, ModelInfo
from domain.errors import ProviderAuth


class Keyless:
    """Says what to set. The vendor's own package is not loaded for it: that takes every start half a second and tens of MB."""

    def __init__(self, kind: str, advice: str) -> None:
        self.kind = kind
        self._error = f"No key for this model. {advice}"

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        raise ProviderAuth(self._error)
        yield  # else it were no generator

    async def models(self) -> tuple[ModelInfo, ...]:
        raise ProviderAuth(self._error)

    async def close(self) -> None: ...
