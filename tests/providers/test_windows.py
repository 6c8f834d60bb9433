"""How much a model takes: by the operator's word, the vendor's list, or what is publicly known."""

from collections.abc import AsyncGenerator

import pytest

from domain.completions import Completion, CompletionRequest, Delta, ModelInfo
from domain.errors import ProviderUnavailable
from providers.config import AnthropicConfig, OpenAICompatibleConfig, ProviderConfig, ScriptedConfig
from providers.registry import Providers
from providers.windows import ASK_ABOVE_TOKENS, Windows

LONG = ASK_ABOVE_TOKENS


class Lister:
    """A provider that only has a list, or is away."""

    kind = "lister"

    def __init__(self, *models: ModelInfo) -> None:
        self._models = models
        self.asked = 0

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Delta | Completion, None]:
        raise ProviderUnavailable("away")
        yield

    async def models(self) -> tuple[ModelInfo, ...]:
        self.asked += 1
        if not self._models:
            raise ProviderUnavailable("away")
        return self._models

    async def close(self) -> None:
        return None


def windows(lister: Lister, config: ProviderConfig) -> Windows:
    return Windows(Providers({"p": lister}, {"p": config}))


async def test_the_vendor_is_asked_once_and_only_where_it_matters() -> None:
    lister = Lister(ModelInfo(name="m", context_tokens=7_000), ModelInfo(name="silent"))
    found = windows(lister, AnthropicConfig())

    assert await found.of("p", "m", LONG - 1) is None
    assert lister.asked == 0
    assert [await found.of("p", name, LONG) for name in ("m", "m", "silent", "other")] == [7_000, 7_000, None, None]
    assert lister.asked == 1


async def test_the_operators_word_comes_first() -> None:
    lister = Lister(ModelInfo(name="m", context_tokens=7_000))
    one = windows(lister, ScriptedConfig(context_tokens=900))
    each = windows(lister, ScriptedConfig(context_tokens={"m": 800}))

    assert (await one.of("p", "m", 0), await one.of("p", "m", LONG)) == (900, 900)
    assert (await each.of("p", "m", LONG), await each.of("p", "other", LONG)) == (800, None)


@pytest.mark.parametrize(
    ("config", "model", "window"),
    [
        (AnthropicConfig(), "claude-sonnet-4-5", 200_000),
        (OpenAICompatibleConfig(base_url="https://api.openai.com/v1"), "gpt-5", 400_000),
        (OpenAICompatibleConfig(base_url="http://localhost:1234/v1"), "gpt-5", None),
        (AnthropicConfig(), "no-such-model", None),
    ],
)
async def test_a_vendor_that_is_away_is_not_waited_for_again(config: ProviderConfig, model: str, window: int | None) -> None:
    lister = Lister()
    found = windows(lister, config)

    assert [await found.of("p", model, LONG) for _ in range(2)] == [window, window]
    assert lister.asked == 1
