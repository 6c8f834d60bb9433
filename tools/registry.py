"""All tools of a worker by name, and the one way to call them: whatever happens becomes an answer for the model."""

import asyncio
import importlib
import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from pydantic import BaseModel, JsonValue, ValidationError

from domain.completions import ToolSpec
from domain.errors import Invalid, ToolFailed
from domain.tools import Effect, Tool, ToolContext
from tools.ask_user import AskUser
from tools.files import Edit, Read, Write
from tools.find import Glob, Grep
from tools.functions import PythonFunction
from tools.web_fetch import WebFetch

MAX_OUTPUT_CHARS = 100_000
MAX_FAULTS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToolOutcome:
    """What the model reads as the result of a tool use."""

    content: str
    is_error: bool = False


def builtin_tools(allow_hosts: frozenset[str] = frozenset()) -> tuple[Tool, ...]:
    """The tools of the toolset. `allow_hosts`: the `host:port` that `web_fetch` may reach though they are not public."""
    return Read(), Write(), Edit(), Glob(), Grep(), WebFetch(allow_hosts), AskUser()


def load_functions(modules: Sequence[str]) -> tuple[Tool, ...]:
    """Import the operator's modules and collect the functions decorated with `function_tool`.

    Raises Invalid for a module that cannot be imported, for whatever reason, or that has none.
    """
    found: list[Tool] = []
    for name in modules:
        try:
            module = importlib.import_module(name)
        except Exception as error:
            raise Invalid(f"the tool module {name} cannot be imported: {type(error).__name__}: {error}") from error
        tools = [value for value in vars(module).values() if isinstance(value, PythonFunction)]
        if not tools:
            raise Invalid(f"the tool module {name} has no function decorated with function_tool")
        # A function imported from another of the modules is the same tool, not a clash.
        found.extend(tool for tool in dict.fromkeys(tools) if tool not in found)
    return tuple(found)


class Tools:
    """Raises Invalid where two tools have one name."""

    def __init__(self, builtin: Iterable[Tool], functions: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        self._specs: dict[str, ToolSpec] = {}
        self._add(builtin)
        self._builtin = frozenset(self._tools)
        self._add(functions)

    def _add(self, tools: Iterable[Tool]) -> None:
        for tool in tools:
            if tool.name in self._tools:
                raise Invalid(f"two tools are called {tool.name}")
            self._tools[tool.name] = tool
            # Made once: a schema costs more than all else that a step does with its tools.
            schema = _schema(tool.arguments)
            self._specs[tool.name] = ToolSpec(name=tool.name, description=tool.description, input_schema=schema)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._tools)

    def get(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def is_builtin(self, name: str) -> bool:
        return name in self._builtin

    def waits_for(self, name: str) -> Literal["input"] | None:
        """What the workflow waits for instead of calling the tool; None for tools that are called."""
        tool = self._tools.get(name)
        return tool.waits_for if isinstance(tool, AskUser) else None

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """The tools as the model sees them. A name that is gone is left out: an agent version outlives the tools it names."""
        return tuple(self._specs[name] for name in names if name in self._specs)

    async def run(
        self, tool_use_name: str, input: Mapping[str, JsonValue], malformed: str | None, context: ToolContext
    ) -> ToolOutcome:
        """Call a tool. Never raises but CancelledError, when the caller was cancelled; see `ToolUse` for the arguments."""
        tool = self._tools.get(tool_use_name)
        if tool is None:
            return _error(f"there is no tool {tool_use_name[:100]!r}; there are: {', '.join(self._tools)}")
        if malformed is not None:
            return _error(f"the arguments are no JSON object: {malformed[:200]}")
        try:
            arguments = tool.arguments.model_validate(input)
        except ValidationError as error:
            return _error(_faults(error))
        limit = asyncio.timeout(tool.timeout_seconds)
        try:
            async with limit:
                return ToolOutcome(_storable(await tool.call(arguments, context)))
        except ToolFailed as error:
            return _error(error.message)
        except TimeoutError as error:
            if not limit.expired():
                return _unexpected(tool.name, error)
            unknown = "" if tool.effect is Effect.READ else "; whether it had an effect is unknown"
            return _error(f"{tool.name} took longer than {tool.timeout_seconds:g} seconds{unknown}")
        except asyncio.CancelledError as error:
            # A tool may let out the cancellation of something of its own; only the caller's is a cancellation here.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return _unexpected(tool.name, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tool is somebody else's code, and its faults must not end the run
            return _unexpected(tool.name, error)


def _error(message: str) -> ToolOutcome:
    return ToolOutcome(_storable(message), is_error=True)


def _unexpected(name: str, error: BaseException) -> ToolOutcome:
    # Where it happened, but not the exception's text: that may quote the arguments, and logs are no place for them.
    log.error("tool %s failed: %s\n%s", name, type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return _error(f"tool failed: {type(error).__name__}")


def _storable(text: str) -> str:
    """Cut to length, without what a database or JSON refuses: NUL and halves of surrogate pairs."""
    whole = text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
    if len(whole) <= MAX_OUTPUT_CHARS:
        return whole
    return f"{whole[:MAX_OUTPUT_CHARS]}\n[cut: the first {MAX_OUTPUT_CHARS:,} of {len(whole):,} characters]"


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in faults[:MAX_FAULTS]]
    return "invalid arguments\n" + "\n".join(lines)


def _schema(arguments: type[BaseModel]) -> dict[str, JsonValue]:
    """The model's JSON Schema without pydantic's titles and the class's docstring, which would only cost tokens."""
    schema = cast("dict[str, JsonValue]", _untitled(arguments.model_json_schema()))
    schema.pop("description", None)
    return schema


def _untitled(schema: JsonValue) -> JsonValue:
    if isinstance(schema, list):
        return [_untitled(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, JsonValue] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs") and isinstance(value, dict):
            # Here the keys are names, and an argument may well be called title.
            out[key] = {name: _untitled(inner) for name, inner in value.items()}
        elif key in ("default", "const", "enum", "examples"):
            out[key] = value
        elif key != "title":
            out[key] = _untitled(value)
    return out
