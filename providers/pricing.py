"""What a model call costs: the operator's own prices, else the vendors' public ones as `genai-prices` ships them (offline)."""

from decimal import ROUND_HALF_UP, Decimal

from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from domain.usage import NANO, Usage
from providers.config import AnthropicConfig, OpenAICompatibleConfig, Prices, ProviderConfig

_MILLION = 1_000_000


def cost_nano_usd(config: ProviderConfig, model: str, usage: Usage) -> int | None:
    """Billionths of a US dollar, or None where nobody knows the price: unknown is never 0.

    `model` is the name the vendor answered with. Local servers, commands and scripts cost None unless the operator says.
    """
    if config.prices is not None:
        return _own(config.prices, usage)
    total = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    # Its input count includes the cache tokens, as OpenAI's does and Anthropic's and ours do not.
    priced = PricedUsage(
        input_tokens=total,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens,
    )
    try:
        match config:
            case AnthropicConfig():
                return _nano(calc_price(priced, model, provider_id="anthropic").total_price)
            case OpenAICompatibleConfig():
                # By address: a local server may call its model `gpt-oss` and still costs nothing known.
                return _nano(calc_price(priced, model, provider_api_url=config.base_url).total_price)
            case _:
                return None
    except LookupError:
        return None


def _own(prices: Prices, usage: Usage) -> int:
    read = prices.input if prices.cache_read is None else prices.cache_read
    write = prices.input if prices.cache_write is None else prices.cache_write
    usd = (
        usage.input_tokens * prices.input
        + usage.output_tokens * prices.output
        + usage.cache_read_input_tokens * read
        + usage.cache_creation_input_tokens * write
    ) / _MILLION
    return _nano(usd)


def _nano(usd: Decimal) -> int:
    return int((usd * NANO).to_integral_value(ROUND_HALF_UP))
