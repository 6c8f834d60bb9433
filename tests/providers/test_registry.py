"""Configuration as the operator writes it, and the providers that come of it."""

import subprocess
import sys
import tomllib

import pytest
from pydantic import TypeAdapter, ValidationError

from domain.completions import CompletionRequest, Message, Text
from domain.errors import ProviderAuth, ProviderNotConfigured
from providers.config import CommandConfig, OpenAICompatibleConfig, ProviderConfig, presets
from providers.registry import build_providers
from tests.durability.nursery import ROOT
from tests.providers.conftest import answer
from tests.providers.faulty import FaultyServer

TOML = """
[providers.lmstudio]
kind = "openai_compatible"
base_url = "http://localhost:1234/v1"
api_key_env = "LMSTUDIO_API_KEY"
concurrency = 2
timeout_seconds = 900
idle_timeout_seconds = 60

[providers.claude-code]
kind = "command"
argv = ["claude", "-p"]
login_shell = true

[providers.demo]
kind = "scripted"
"""


def no_keys(name: str) -> str | None:
    return None


CONFIGS = TypeAdapter[dict[str, ProviderConfig]](dict[str, ProviderConfig])


async def test_the_operators_file_extends_the_presets() -> None:
    operators = CONFIGS.validate_python(tomllib.loads(TOML)["providers"])

    providers = build_providers({**presets(), **operators}, no_keys)

    assert set(providers.names) == {"anthropic", "openai", "lmstudio", "ollama", "demo", "claude-code"}
    assert isinstance(providers.configs["claude-code"], CommandConfig)
    assert isinstance(lmstudio := providers.configs["lmstudio"], OpenAICompatibleConfig)
    assert lmstudio.api_key_env == "LMSTUDIO_API_KEY"
    assert {name: providers.get(name).kind for name in providers.names} == {
        name: config.kind for name, config in providers.configs.items()
    }
    await providers.close()


def test_no_command_runs_unless_the_operator_says_so() -> None:
    assert not [name for name, config in presets().items() if config.kind == "command"]


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "anthropic", "api_key": "sk-123"},
        {"kind": "openai_compatible"},
        {"kind": "openai_compatible", "base_url": "localhost:1234"},
        {"kind": "anthropic", "concurrency": 0},
        {"kind": "telepathy"},
    ],
)
def test_what_the_operator_got_wrong_is_an_error(table: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CONFIGS.validate_python({"x": table})


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ProviderNotConfigured, match="anthropic, demo, lmstudio, ollama, openai"):
        build_providers(presets(), no_keys).get("telepathy")


def test_a_package_for_which_there_is_no_key_is_not_loaded() -> None:
    """It would cost every start of every process half a second."""
    code = """if True:
        import sys
        import worker, api.app, commands.serve
        from providers.registry import build_providers
        from providers.config import presets
        build_providers(presets(), {}.get)
        print("anthropic" in sys.modules)
        build_providers(presets(), {"ANTHROPIC_API_KEY": "sk"}.get)
        print("anthropic" in sys.modules)
    """
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\nTrue\n"


async def test_keys_come_from_the_named_variables(faulty: FaultyServer) -> None:
    config = OpenAICompatibleConfig(base_url=f"{faulty.url}/401/v1", api_key_env="HOUSE_KEY")
    providers = build_providers({"house": config}, {"HOUSE_KEY": " sk-house\n"}.get)
    request = CompletionRequest(model="m", messages=(Message(role="user", content=(Text(text="hi"),)),))

    with pytest.raises(ProviderAuth, match="HOUSE_KEY"):
        await answer(providers.get("house"), request)
    await providers.close()

    assert faulty.headers[-1]["authorization"] == "Bearer sk-house"
