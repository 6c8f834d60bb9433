"""Writes docs/reference.md from the code: `python docs/build.py`. A test keeps the two in step."""

import sys
from pathlib import Path
from typing import Any, get_args

from fastapi import FastAPI
from pydantic.fields import FieldInfo

from api.app import ROUTERS
from domain import errors
from domain.events import EventPayload
from domain.keys import SCOPES
from domain.tools import Tool
from providers.config import AnthropicConfig, CommandConfig, OpenAICompatibleConfig, ScriptedConfig, presets
from settings import BraveSettings, SearXNGSettings, Settings, ShellSettings, TavilySettings, TitleSettings
from tools.mcp.config import McpCommand
from tools.registry import builtin_tools
from tools.search_backends import SearXNG
from tools.web_search import WebSearch

REFERENCE = Path(__file__).parent / "reference.md"


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference",
        "Generated from the code by `python docs/build.py`.",
        "## Settings",
        "Environment variables, also read from `.env`.",
        _table(("variable", "default", "meaning"), [_setting(name, field) for name, field in Settings.model_fields.items()]),
        "Vendors' keys keep the vendors' names: `ANTHROPIC_API_KEY`, `OPENAI_API_KEY`, or what `api_key_env` names "
        "in `perdure.toml`.",
        "## perdure.toml",
        '`[secrets] NAME = { env = "VARIABLE", hosts = ["host"] }` gives a secret its name and says for whom it is. '
        "`[providers.NAME]` tables by `kind`; `[queues]` with activities at once per task queue; `[tools] modules = […]` with "
        "Python modules of your own tools, "
        'and `fetch_allow_hosts = ["host:port"]` and `mcp_allow_hosts = ["host:port"]`. '
        "`[tools.shell]` is the shell's. Unknown keys are errors. "
        f"There without configuration: {', '.join(f'`{name}`' for name in presets())}.",
        *(_provider(config) for config in (AnthropicConfig, OpenAICompatibleConfig, CommandConfig, ScriptedConfig)),
        "### tools.shell\n\n" + _keys(ShellSettings),
        "### titles\n\n" + _keys(TitleSettings),
        "### [mcp.NAME]",
        _keys(McpCommand),
        *(_search(config) for config in (SearXNGSettings, BraveSettings, TavilySettings)),
        "## Built-in tools",
        _table(("tool", "effect", "what it does"), [(f"`{t.name}`", t.effect.value, t.description) for t in _builtin()]),
        "## HTTP",
        _table(("operation", "", "what it does"), _operations()),
        "Scopes of keys: " + ", ".join(f"`{scope}`" for scope in SCOPES) + ".",
        "## Events",
        "Members beside the envelope `id seq type session_id run_id created_at processed_at`.",
        _table(("type", "members"), _events()),
        "## Errors",
        "The `code` of a problem, and of a run's `error`.",
        _table(("code", "status", "title"), _errors()),
    ]
    return "\n\n".join(parts) + "\n"


def _builtin() -> tuple[Tool, ...]:
    return builtin_tools(search=WebSearch(SearXNG("http://localhost:8888"), 5))


def _setting(name: str, field: FieldInfo) -> tuple[str, str, str]:
    variable = field.validation_alias if isinstance(field.validation_alias, str) else f"PERDURE_{name.upper()}"
    default = "" if field.default in (None, ()) else f"`{field.default}`"
    return f"`{variable}`", default, field.description or ""


def _provider(config: Any) -> str:
    return f'### kind = "{config.model_fields["kind"].default}"\n\n' + _keys(config)


def _search(config: Any) -> str:
    return f'### [tools.web_search] backend = "{config.model_fields["backend"].default}"\n\n' + _keys(config)


def _keys(config: Any) -> str:
    rows = [
        (f"`{name}`", "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`")
        for name, field in config.model_fields.items()
    ]
    return _table(("key", "default"), rows)


def _operations() -> list[tuple[str, str, str]]:
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    found: list[tuple[str, str, str]] = []
    for path, methods in app.openapi()["paths"].items():
        for method, operation in methods.items():
            described = operation.get("description", operation["summary"]).split("\n")[0]
            found.append((f"`{method.upper()}`", f"`{path}`", described))
    return found


def _events() -> list[tuple[str, str]]:
    union = get_args(get_args(EventPayload)[0])
    return [
        (f"`{payload.model_fields['type'].default}`", " ".join(f"`{n}`" for n in payload.model_fields if n != "type"))
        for payload in union
    ]


def _errors() -> list[tuple[str, str, str]]:
    def tree(kind: type[errors.PerdureError]) -> list[type[errors.PerdureError]]:
        return [kind, *(each for sub in kind.__subclasses__() if sub.__module__ == errors.__name__ for each in tree(sub))]

    return [(f"`{kind.code}`", str(kind.status), kind.title) for kind in tree(errors.PerdureError)[1:]]


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    REFERENCE.write_text(reference())
    sys.stdout.write(f"wrote {REFERENCE.name}\n")
