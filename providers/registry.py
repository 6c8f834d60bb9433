"""The providers of one process, by the names that models are written with (`name:model`)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from domain.completions import Provider
from domain.errors import ProviderNotConfigured
from providers.command import CommandProvider
from providers.config import (
    AnthropicConfig,
    CommandConfig,
    OpenAICompatibleConfig,
    ProviderConfig,
    ScriptedConfig,
)
from providers.keyless import Keyless
from providers.openai_compatible import OpenAICompatibleProvider
from providers.scripted import ScriptedProvider


class Providers:
    """Providers by name, with what the operator said about each in `configs`."""

    def __init__(self, providers: Mapping[str, Provider], configs: Mapping[str, ProviderConfig]) -> None:
        self._providers = dict(providers)
        self.configs: Mapping[str, ProviderConfig] = MappingProxyType(dict(configs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._providers)

    def get(self, name: str) -> Provider:
        """Raises ProviderNotConfigured with the names that there are."""
        try:
            return self._providers[name]
        except KeyError:
            known = ", ".join(sorted(self._providers))
            raise ProviderNotConfigured(f"There is no provider {name!r}; configured are: {known}.") from None

    async def close(self) -> None:
        for provider in self._providers.values():
            await provider.close()


def build_providers(configs: Mapping[str, ProviderConfig], secret: Callable[[str], str | None]) -> Providers:
    """Build every configured provider; usually from `{**presets(), **operator's}`.

    `secret` gives the value of an environment variable: a key, or what a command is handed. A provider without its key is
    built all the same: its calls raise ProviderAuth with the name of what to set. No connection is made here.
    """
    return Providers({name: _build(config, secret) for name, config in configs.items()}, configs)


def _build(config: ProviderConfig, secret: Callable[[str], str | None]) -> Provider:
    match config:
        case AnthropicConfig():
            return _anthropic(config, secret(config.api_key_env))
        case OpenAICompatibleConfig():
            return OpenAICompatibleProvider(config, secret(config.api_key_env) if config.api_key_env else None)
        case CommandConfig():
            return CommandProvider(config, {n: value for n in config.env if (value := secret(n)) is not None})
        case ScriptedConfig():
            return ScriptedProvider(config)


def _anthropic(config: AnthropicConfig, key: str | None) -> Provider:
    if key is None:
        return Keyless(config.kind, f"Set {config.api_key_env} to a valid key and restart.")
    from providers.anthropic import AnthropicProvider  # noqa: PLC0415  # see providers/keyless.py

    return AnthropicProvider(config, key)
