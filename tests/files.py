"""Files as callers give them and agents publish them."""

from pathlib import Path
from typing import Any

from tests.service import RunView, Workspace

CSV = "name,price\nÄpfel,3\n".encode()


def upload(
    workspace: Workspace, content: bytes = CSV, name: str = "prices.csv", media_type: str = "text/csv"
) -> dict[str, Any]:
    response = workspace.http.post("/v1/files", files={"file": (name, content, media_type)})
    assert response.status_code == 200, response.text
    return response.json()


def use(tool: str, /, **input: Any) -> dict[str, Any]:
    return {"tools": [{"name": tool, "input": input}]}


def results(run: RunView) -> list[str]:
    assert run.wait()["status"] == "completed"
    return [event["content"][0]["text"] for event in run.events() if event["type"] == "agent.tool_result"]


def directory(workspace: Workspace, session_id: str) -> Path:
    (found,) = workspace.service.parts.files.root.glob(f"*/{session_id}")
    return found


def stored(workspace: Workspace, id: str) -> list[Path]:
    return list(workspace.service.parts.files.root.glob(f"*/stored/{id}"))
