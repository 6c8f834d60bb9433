"""A digest of every function and class that a run's commands depend on: `python -m tests.replay.fingerprint` records them.

A replay only fails where a recorded history happens to go through what was edited. The fingerprint names the edit itself.
"""

import ast
import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from workflows.agent_run import AgentRun
from workflows.payloads import data_converter
from workflows.runner import workflow_runner

ROOT = Path(__file__).parents[2]
HISTORIES = Path(__file__).parent / "histories"
RECORDED = Path(__file__).parent / "fingerprints.json"
SOURCES = (
    "workflows/agent_run.py",
    "workflows/attributes.py",
    "workflows/sweep.py",
    "workflows/titles.py",
    "domain/commands.py",  # what defaults old payloads get
)


def replayer() -> Replayer:
    return Replayer(workflows=[AgentRun], data_converter=data_converter, workflow_runner=workflow_runner())


async def replay(path: Path) -> None:
    """Raises temporalio.workflow.NondeterminismError."""
    await replayer().replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text()))


def fingerprints(root: Path = ROOT) -> dict[str, str]:
    """By place, such as `workflows/agent_run.py: AgentRun._call_model`. Comments, docstrings and layout do not count."""
    found: dict[str, str] = {}
    for source in SOURCES:
        for name, nodes in _parts(ast.parse((root / source).read_text()), ""):
            text = "\n".join(_plain(node) for node in nodes)
            found[f"{source}: {name or 'its top level'}"] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def edited(root: Path = ROOT) -> list[str]:
    """The places that differ from what is recorded."""
    recorded: Mapping[str, str] = json.loads(RECORDED.read_text())
    today = fingerprints(root)
    return sorted(place for place in recorded.keys() | today.keys() if recorded.get(place) != today.get(place))


def _parts(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, list[ast.AST]]]:
    """Each function by itself, and of a class or module what is left."""
    rest: list[ast.AST] = [] if isinstance(node, ast.Module) else [*node.bases, *node.keywords, *node.decorator_list]
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}".removeprefix("."), [child]
        elif isinstance(child, ast.ClassDef):
            yield from _parts(child, f"{name}.{child.name}".removeprefix("."))
        elif not isinstance(child, ast.Import | ast.ImportFrom):
            rest.append(child)
    yield name, rest


def _plain(node: object) -> str:
    """Not ast.dump, whose form differs between versions of Python."""
    if isinstance(node, list):
        return "[" + ",".join(_plain(item) for item in cast("list[object]", node) if not _is_docstring(item)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if _is_docstring(node):
        return ""
    members = [
        (name, getattr(node, name, None)) for name in node._fields if name not in ("type_comment", "kind", "type_params")
    ]
    return type(node).__name__ + "(" + ",".join(f"{name}={_plain(value)}" for name, value in members if value != []) + ")"


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def main() -> None:
    for path in sorted(HISTORIES.glob("*.json")):
        asyncio.run(replay(path))
    RECORDED.write_text(json.dumps(fingerprints(), indent=1) + "\n")
    sys.stdout.write(f"all histories replay; wrote {RECORDED.name}\n")


if __name__ == "__main__":
    main()
