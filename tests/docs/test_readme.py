"""The README's commands, run as a newcomer would: each block of them is known here, so a new one cannot go untested."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
MAKE_RUN, EXPORT, CURL, COMMAND, MAKE_TEST = BLOCKS

pytestmark = pytest.mark.single_database


def shell(block: str, environment: dict[str, str], seconds: float = 60) -> str:
    # In bash as it stands there, but on this test's port.
    text = block.replace("127.0.0.1:8000", f"127.0.0.1:{environment['PERDURE_PORT']}")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """`make run`, on free ports, and the key that it shows."""
    assert MAKE_RUN == "make run\n"
    data = tmp_path_factory.mktemp("readme") / "data"
    environment = {
        **os.environ,
        "PERDURE_DATA_DIR": str(data),
        "PERDURE_PORT": str(free_port()),
        "PERDURE_TEMPORAL_PORT": str(free_port()),
        "PERDURE_TEMPORAL_UI_PORT": str(free_port()),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    output = data.parent / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(["make", "run"], cwd=ROOT, env=environment, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"API key +(\S+)", output.read_text())):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        shown = EXPORT.replace("pdr_…", found[1])
        assert shown != EXPORT
        yield {**environment, "PERDURE_API_KEY": found[1]}
    finally:
        process.terminate()
        process.wait(30)


def test_the_curl_that_streams(environment: dict[str, str]) -> None:
    out = shell(CURL, environment)
    assert "event: event_delta" in out
    assert out.rstrip().splitlines()[-2] == "event: done"


def test_the_command_line(environment: dict[str, str]) -> None:
    out = shell(COMMAND, environment)
    assert "Tell me a story" in out


def test_make_test_is_what_ci_runs() -> None:
    assert MAKE_TEST == "make test\n"
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_the_openapi_document_is_served(environment: dict[str, str]) -> None:
    document = json.loads(shell("curl -s http://127.0.0.1:8000/openapi.json", environment))
    assert "/v1/runs" in document["paths"]
