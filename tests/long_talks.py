"""Conversations that are longer than what their models take."""

import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.providers.strict import StrictModel
from tests.service import Workspace

CONFIG = """
[providers.claude]
kind = "anthropic"
base_url = "{small.url}"
api_key_env = "PATH"

[providers.small]
kind = "openai_compatible"
base_url = "{small.url}/v1"
context_tokens = 4000

[providers.unknown]
kind = "openai_compatible"
base_url = "{silent.url}/v1"

[providers.bare]
kind = "openai_compatible"
base_url = "{wide.url}/bare/v1"

[providers.wide]
kind = "anthropic"
base_url = "{wide.url}"
api_key_env = "PATH"

[providers.command]
kind = "command"
argv = ["cat"]
stdin = true

[providers.wideopenai]
kind = "openai_compatible"
base_url = "{wide.url}/v1"

[titles]
enabled = false
"""
WINDOW = 4_000
FILLER = "It was a long day at the office and nobody said much of note. "


class Models:
    """`small` takes 4,000 tokens and says so, `silent` takes as much and does not, `wide` takes everything."""

    def __init__(self, small: StrictModel, silent: StrictModel, wide: StrictModel) -> None:
        self.small = small
        self.silent = silent
        self.wide = wide


def fresh(model: StrictModel) -> Iterator[StrictModel]:
    model.forget()
    yield model
    model.release.set()
    assert model.faults == []


class Talk:
    """A session whose agent reads files; each has the facts that its name says, in much text."""

    def __init__(self, workspace: Workspace, provider: str, files: tuple[str, ...] = (), **agent: Any) -> None:
        self.workspace = workspace
        made = workspace.agent(model=f"{provider}:strict", tools=["read"], system="You read files.", **agent)
        resources: list[dict[str, str]] = []
        for name in files:
            text = f"fact-{name} " + FILLER * int(name.rpartition("x")[2])
            stored = workspace.http.post("/v1/files", files={"file": (name, text.encode(), "text/plain")}).json()
            resources.append({"type": "file", "file_id": stored["id"], "mount_path": name})
        self.id = workspace.post("/v1/sessions", {"agent": made["id"], "resources": resources})["id"]

    def send(self, text: str | list[dict[str, Any]]) -> str:
        return self.workspace.post(f"/v1/sessions/{self.id}/messages", {"content": text}, expect=201)["run"]["id"]

    def say(self, text: str | list[dict[str, Any]]) -> dict[str, Any]:
        """The turn's run, which must answer."""
        run = self.workspace.get(f"/v1/runs/{self.send(text)}/wait", timeout_seconds=60)
        assert run["status"] == "completed", run
        return run

    def events(self, *types: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {}
        wanted = {"types": list(types)} if types else {}
        while page.get("has_more", True):
            more = {"page": page["next_page"]} if page else {}
            page = self.workspace.get(f"/v1/sessions/{self.id}/events", limit=1000, **wanted, **more)
            found += page["data"]
        return found

    def compactions(self) -> list[dict[str, Any]]:
        return self.events("agent.thread_context_compacted")


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
