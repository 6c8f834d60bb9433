"""Model servers on the loopback for the provider tests: aimock (npm), and one that misbehaves."""

import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest

from domain.completions import Completion, CompletionRequest, Delta, Message, Provider, Text
from providers.anthropic import AnthropicProvider
from providers.config import AnthropicConfig, OpenAICompatibleConfig
from providers.openai_compatible import OpenAICompatibleProvider
from tests.npm import NODE, install, unavailable
from tests.providers.faulty import FaultyServer, faulty_server

FIXTURES = NODE / "fixtures.json"
KEY = "sk-test-very-secret"


@dataclass(frozen=True)
class Vendor:
    """How one provider is pointed at a server; `base` is a URL without the API's version."""

    name: str
    model: str

    def provider(self, base: str, key: str | None = KEY, idle: float = 5, total: float = 10) -> Provider:
        if self.name == "anthropic":
            claude = AnthropicConfig(base_url=base, idle_timeout_seconds=idle, timeout_seconds=total)
            return AnthropicProvider(claude, key)
        config = OpenAICompatibleConfig(
            base_url=f"{base}/v1", api_key_env="OPENAI_API_KEY", idle_timeout_seconds=idle, timeout_seconds=total
        )
        return OpenAICompatibleProvider(config, key)

    def ask(self, *texts: str) -> CompletionRequest:
        """Texts by turns, the user's first."""
        roles = ("user", "assistant")
        messages = tuple(Message(role=roles[i % 2], content=(Text(text=t),)) for i, t in enumerate(texts))
        return CompletionRequest(model=self.model, messages=messages)


VENDORS = (Vendor("anthropic", "claude-sonnet-5-5"), Vendor("openai", "gpt-5"))


async def answer(provider: Provider, request: CompletionRequest) -> tuple[list[Delta], Completion]:
    """The whole stream: deltas, then the one Completion."""
    items = [item async for item in provider.stream(request)]
    deltas = [item for item in items if isinstance(item, Delta)]
    assert len(deltas) == len(items) - 1, "a Completion comes once and last"
    last = items[-1]
    assert isinstance(last, Completion)
    for index, block in enumerate(last.content):
        if block.type != "tool_use":
            assert "".join(d.text for d in deltas if d.index == index) == block.text
            assert {d.kind for d in deltas if d.index == index} <= {block.type}
    return deltas, last


@pytest.fixture(params=VENDORS, ids=lambda v: v.name)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return request.param


@pytest.fixture
async def faulty() -> AsyncIterator[FaultyServer]:
    async with faulty_server() as server:
        yield server


@pytest.fixture
async def connect(vendor: Vendor) -> AsyncIterator[Callable[..., Provider]]:
    """`vendor.provider`, closed after the test."""
    made: list[Provider] = []

    def make(base: str, key: str | None = KEY, idle: float = 5, total: float = 10) -> Provider:
        made.append(vendor.provider(base, key, idle, total))
        return made[-1]

    yield make
    for provider in made:
        await provider.close()


@pytest.fixture(scope="session")
def aimock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an aimock with `tests/node/fixtures.json`."""
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        unavailable("node and npm are not installed")
    install()
    output = tmp_path_factory.mktemp("aimock") / "output"
    cli = NODE / "node_modules" / "@copilotkit" / "aimock" / "dist" / "cli.js"
    command = [node, str(cli), "-p", "0", "-f", str(FIXTURES), "-c", "5", "--strict", "--validate-on-load"]
    with output.open("wb") as sink:
        process = subprocess.Popen(command, cwd=NODE, stdout=sink, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + 30
        while not (found := re.search(r"listening on (http://\S+)", output.read_text())):
            if process.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"aimock did not start: {output.read_text()}")
            time.sleep(0.05)
        yield found[1]
    finally:
        process.terminate()
        process.wait(10)
