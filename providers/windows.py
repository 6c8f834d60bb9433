"""How many tokens a model takes: what the operator says, else what its provider lists, else what is known of it offline."""

import asyncio
import logging
import time
from dataclasses import dataclass

from genai_prices import Usage, calc_price

from domain.completions import ModelInfo
from domain.errors import ProviderError
from providers.config import AnthropicConfig, OpenAICompatibleConfig, ProviderConfig
from providers.registry import Providers

ASK_SECONDS = 5.0
ASK_ABOVE_TOKENS = 2_000
"""A shorter conversation fits every model, and is no reason to ask its provider."""
_KEPT_SECONDS = 600.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Listed:
    models: tuple[ModelInfo, ...]
    at: float


class Windows:
    """Asks each provider at most every ten minutes, whether it answers or not."""

    def __init__(self, providers: Providers) -> None:
        self._providers = providers
        self._listed: dict[str, _Listed] = {}

    async def of(self, provider: str, model: str, tokens: int) -> int | None:
        """The window of a model that is to be given so many tokens; None: nobody knows, or need know."""
        config = self._providers.configs.get(provider)
        if config is None:
            return None
        said = config.context_tokens
        said = said.get(model) if isinstance(said, dict) else said
        if said is not None or tokens < ASK_ABOVE_TOKENS:
            return said
        listed = next((found.context_tokens for found in await self._ask(provider) if found.name == model), None)
        return listed or known(config, model)

    async def _ask(self, provider: str) -> tuple[ModelInfo, ...]:
        before = self._listed.get(provider)
        if before is not None and time.monotonic() - before.at < _KEPT_SECONDS:
            return before.models
        models: tuple[ModelInfo, ...] = ()
        try:
            async with asyncio.timeout(ASK_SECONDS):
                models = await self._providers.get(provider).models()
        except (ProviderError, TimeoutError) as error:
            log.info("%s does not say what its models take: %s", provider, error)
        self._listed[provider] = _Listed(models, time.monotonic())
        return models


def known(config: ProviderConfig, model: str) -> int | None:
    """What `genai-prices` ships of the vendors' own models."""
    try:
        match config:
            case AnthropicConfig():
                return calc_price(Usage(), model, provider_id="anthropic").model.context_window
            case OpenAICompatibleConfig():
                return calc_price(Usage(), model, provider_api_url=config.base_url).model.context_window
            case _:
                return None
    except LookupError:
        return None
