"""Tokens and money."""

from decimal import Decimal

from pydantic import BaseModel

NANO = 1_000_000_000


class Usage(BaseModel, frozen=True):
    """Tokens of one model call, or of many. `input_tokens` excludes what was read from or written to a cache."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    estimated: bool = False
    """True when the vendor sent no usage and the figures are counted from the text (4 characters a token)."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_input_tokens=self.cache_read_input_tokens + other.cache_read_input_tokens,
            cache_creation_input_tokens=self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            estimated=self.estimated or other.estimated,
        )


class Cost(BaseModel, frozen=True):
    """Money, as a decimal string so that no float rounds it."""

    amount: str
    currency: str = "USD"

    @property
    def nano_usd(self) -> int:
        """Billionths of a US dollar, the unit in which sums are kept."""
        return int(Decimal(self.amount) * NANO)


def cost_of(nano_usd: int | None) -> Cost | None:
    """Billionths of a US dollar as wire money; None stays None: unknown is never shown as zero."""
    return None if nano_usd is None else Cost(amount=f"{Decimal(nano_usd) / NANO:.9f}".rstrip("0").rstrip(".") or "0")


def estimate_tokens(text: str) -> int:
    """A rough count for vendors that report none: four characters a token."""
    return (len(text) + 3) // 4
