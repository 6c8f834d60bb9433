"""Costs: caches count once, and nobody's guess is shown as zero."""

import pytest
from pydantic import TypeAdapter

from domain.usage import Usage
from providers.config import (
    AnthropicConfig,
    CommandConfig,
    OpenAICompatibleConfig,
    Prices,
    ProviderConfig,
    ScriptedConfig,
)
from providers.pricing import cost_nano_usd

USAGE = Usage(input_tokens=1_000_000, output_tokens=100_000)
OPENAI = OpenAICompatibleConfig(base_url="https://api.openai.com/v1")
LOCAL = OpenAICompatibleConfig(base_url="http://localhost:1234/v1")


def cost(config: ProviderConfig, model: str, usage: Usage = USAGE) -> int:
    nano = cost_nano_usd(config, model, usage)
    assert nano is not None
    return nano


def test_public_prices() -> None:
    # 1 USD per million tokens in, 5 out; 10 % of the input price from the cache, 125 % into it.
    assert cost(AnthropicConfig(), "claude-haiku-4-5") == 1_500_000_000
    assert cost(OPENAI, "gpt-5") == 2_250_000_000


@pytest.mark.parametrize(("config", "model"), [(AnthropicConfig(), "claude-haiku-4-5"), (OPENAI, "gpt-5")])
def test_tokens_from_the_cache_are_cheaper_and_not_counted_twice(config: ProviderConfig, model: str) -> None:
    plain = cost(config, model, Usage(input_tokens=10_000))
    cached = cost(config, model, Usage(input_tokens=1_000, cache_read_input_tokens=9_000))

    assert cached == pytest.approx(plain * 0.19)


def test_tokens_into_claudes_cache_cost_more() -> None:
    written = cost(AnthropicConfig(), "claude-haiku-4-5", Usage(cache_creation_input_tokens=1_000_000))

    assert written == 1_250_000_000


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (AnthropicConfig(), "claude-of-tomorrow"),
        (OPENAI, "qwen3-8b"),
        (LOCAL, "gpt-5"),
        (CommandConfig(argv=("claude", "-p")), "claude-haiku-4-5"),
        (ScriptedConfig(), "demo"),
    ],
)
def test_an_unknown_price_is_not_zero(config: ProviderConfig, model: str) -> None:
    assert cost_nano_usd(config, model, USAGE) is None


def test_the_operators_prices_come_first() -> None:
    config = TypeAdapter[ProviderConfig](ProviderConfig).validate_python(
        {"kind": "anthropic", "prices": {"input": 0.1, "output": 2, "cache_read": 0.01}}
    )

    usage = Usage(input_tokens=10, output_tokens=10, cache_read_input_tokens=10, cache_creation_input_tokens=10)

    assert cost(config, "claude-haiku-4-5", usage) == 1_000 + 20_000 + 100 + 1_000
    assert cost(LOCAL.model_copy(update={"prices": Prices(input=0, output=0)}), "any") == 0  # pyright: ignore[reportArgumentType]
