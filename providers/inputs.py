"""What a provider's models take besides text."""

from domain.completions import Document, Image
from domain.payload import PlainTextSource, UrlSource
from providers.config import CommandConfig, OpenAICompatibleConfig, ProviderConfig


def refusal(config: ProviderConfig, block: Image | Document) -> str | None:
    """Why it cannot be given to them; None: it can. Documents of text go to every model, as text where it knows no others."""
    if isinstance(block.source, PlainTextSource):
        return None
    inputs = () if isinstance(config, CommandConfig) else config.inputs
    if block.type not in inputs:
        return f"takes no {block.type}s"
    if isinstance(block.source, UrlSource):
        if "url" not in inputs:
            return f"fetches no {block.type}s from a URL: upload it, or send it as base64"
        if isinstance(config, OpenAICompatibleConfig) and block.type == "document":
            return "fetches no documents from a URL: upload it, or send it as base64"
    return None
