"""Chromium, and the backend of the example's page at an origin of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.npm import unavailable
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")  # not longer: while it lives, Playwright's event loop runs in this thread, and no other can
def browser() -> Iterator[Browser]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        unavailable("chromium is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


def _tell(message: ConsoleMessage) -> None:
    sys.stdout.write(f"{message.type}: {message.text}\n")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page of its own; what it logs is shown when the test fails."""
    context = browser.new_context()
    page = context.new_page()
    page.on("console", _tell)
    yield page
    context.close()


@contextmanager
def example_backend(folder: Path, url: str, key: str, agent: str, port: int, public_url: str | None = None) -> Generator[str]:
    """A copy of `examples/browser` in that folder, served as its reader does it; its address."""
    shutil.copytree(ROOT / "examples" / "browser", folder)
    environment = {"PERDURE_URL": url, "PERDURE_API_KEY": key, "PERDURE_AGENT": agent, "PORT": str(port)}
    environment["PERDURE_PUBLIC_URL"] = public_url or url
    command = [sys.executable, str(folder / "server.py")]
    process = subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        origin = f"http://127.0.0.1:{port}"
        while True:
            try:
                assert httpx2.get(origin).status_code == 200
                break
            except httpx2.TransportError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield origin
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def origin_port() -> int:
    """Known before the service starts, which must name the origin."""
    return free_port()
