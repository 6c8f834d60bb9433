"""What a fresh data folder gets: the default workspace, a key, and agents that work at once."""

import asyncio
import json
import os
from dataclasses import dataclass
from pathlib import Path

from domain.agent_tools import ToolConfig, ToolDefault, Toolset
from domain.agents import AgentConfig, Limits, ModelConfig
from domain.errors import ProviderAuth, ProviderError
from domain.keys import SCOPES, new_key
from providers.config import AnthropicConfig
from storage.agents import Agents
from storage.database import Transaction
from storage.keys import DEFAULT_WORKSPACE, Keys
from worker import Parts

LOOK_SECONDS = 1.5
_LOOKED_FOR = ("anthropic", "lmstudio", "ollama")
_PREFERRED = "claude-sonnet"
_DEFAULT_CLAUDE = "claude-sonnet-5-5"

DEMO_SYSTEM = "You are a scripted demonstration."
ASSISTANT_SYSTEM = "You are a helpful assistant. Use your tools when they help, and say what you did."


@dataclass(frozen=True)
class Bootstrapped:
    new_key: str | None
    """Only the first time: it is stored as a hash."""
    assistant: str | None
    """The model of the `assistant` agent, if there is one."""


async def bootstrap(parts: Parts, data: Path) -> Bootstrapped:
    """Safe to run at every start, and by several processes."""
    model = await _available_model(parts)
    given = parts.settings.bootstrap_key
    key: str | None = None
    async with parts.database.write() as transaction:
        keys = Keys(transaction.connection)
        if await keys.ensure_default_workspace():
            key = given.get_secret_value() if given else new_key()
            await keys.add(DEFAULT_WORKSPACE, "bootstrap", key, SCOPES)
        assistant = await _agents(transaction, model)
    _write_profile(data, parts, key)
    return Bootstrapped(None if given else key, assistant)


async def _agents(transaction: Transaction, model: str | None) -> str | None:
    agents = Agents(transaction.connection, DEFAULT_WORKSPACE)
    if not await agents.ids_named("demo"):
        tools = Toolset(default_config=ToolDefault(enabled=False), configs=(ToolConfig(name="write"), ToolConfig(name="read")))
        await agents.create(
            AgentConfig(
                name="demo",
                description="A scripted demonstration: no model, no key, no network.",
                model=ModelConfig(id="demo:demo"),
                system=DEMO_SYSTEM,
                tools=(tools,),
                limits=Limits(max_steps=20),
            )
        )
    ids = await agents.ids_named("assistant")
    if ids:
        return (await agents.get(ids[0])).config.model.id
    if model is not None:
        await agents.create(
            AgentConfig(name="assistant", model=ModelConfig(id=model), system=ASSISTANT_SYSTEM, tools=(Toolset(),))
        )
    return model


async def _available_model(parts: Parts) -> str | None:
    """The first model that answers: Anthropic with a key, else LM Studio or Ollama on their usual ports."""
    answers = await asyncio.gather(*(_first_model(parts, name) for name in _LOOKED_FOR))
    return next((model for model in answers if model is not None), None)


async def _first_model(parts: Parts, name: str) -> str | None:
    config = parts.providers.configs.get(name)
    if config is None:
        return None
    names: list[str] = []
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            names = [model.name for model in await parts.providers.get(name).models()]
    except ProviderAuth:
        return None
    except (ProviderError, TimeoutError):
        if isinstance(config, AnthropicConfig):
            names = [_DEFAULT_CLAUDE]  # there is a key; the network may come back
    if isinstance(config, AnthropicConfig):
        names.sort(key=lambda model: _PREFERRED not in model)
    return f"{name}:{names[0]}" if names else None


def _write_profile(data: Path, parts: Parts, key: str | None) -> None:
    """Lets the command line on this machine in without being told the key; `key` None keeps the one that is there."""
    path = data / "profile.json"
    if key is None:
        try:
            key = json.loads(path.read_text())["api_key"]
        except (OSError, ValueError, KeyError):
            return
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(parts.settings.host, parts.settings.host)
    url = f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:{parts.settings.port}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"url": url, "api_key": key}, file)
