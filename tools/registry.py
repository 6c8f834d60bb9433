"""The tools of a worker by name: the built-in ones and the operator's Python functions."""

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol, cast, runtime_checkable

from pydantic import BaseModel, JsonValue, ValidationError

from domain.agent_tools import FunctionTool, Policy, Toolset
from domain.agents import AgentConfig
from domain.completions import ToolSpec
from domain.errors import Invalid, ToolFailed
from domain.tools import OfferedTool, Tool, ToolAnswer, ToolContext, Wait
from tools.ask_user import AskUser
from tools.files import Edit, Read, Write
from tools.find import Glob, Grep
from tools.functions import PythonFunction
from tools.plan import Plan
from tools.publish import PublishArtifact
from tools.sandbox import Sandbox
from tools.shell import Bash
from tools.waiting import SleepUntil, WaitForEvent
from tools.web_fetch import WebFetch
from tools.web_search import WebSearch

MAX_FAULTS = 10


@runtime_checkable
class Waiting(Protocol):
    """A built-in tool that the workflow carries out, by waiting."""

    def plan_wait(self, arguments: BaseModel) -> Wait:
        """What those arguments mean. Raises ToolFailed."""
        ...


def builtin_tools(
    allow_hosts: frozenset[str] = frozenset(), search: WebSearch | None = None, shell: Bash | None = None
) -> tuple[Tool, ...]:
    """The tools of the toolset. `allow_hosts`: the `host:port` that `web_fetch` may reach though they are not public;
    `search`: the tool for it, where the operator configured one."""
    files = (Read(), Write(), Edit(), Glob(), Grep(), shell or Bash(Sandbox()), PublishArtifact())
    web = (WebFetch(allow_hosts), *((search,) if search else ()))
    return *files, *web, Plan(), AskUser(), SleepUntil(), WaitForEvent()


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

    def specs(self, names: Iterable[str]) -> tuple[ToolSpec, ...]:
        """The tools as the model sees them. A name that is gone is left out: an agent version outlives the tools it names."""
        return tuple(self._specs[name] for name in names if name in self._specs)

    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        network = any(isinstance(tool, Toolset) and tool.network for tool in config.tools)
        return [self.offer(name, policy, network) for name, policy in self._wanted(config).items()]

    def offer(self, name: str, policy: Policy | None = None, network: bool = False) -> OfferedTool:
        """The tool of that name, with its own default where no policy is given. Raises KeyError."""
        tool = self._tools[name]
        if network and isinstance(tool, Bash):
            tool = tool.with_network()
        return OfferedTool(
            spec=self._specs[name],
            effect=tool.effect,
            timeout_seconds=tool.timeout_seconds,
            policy=policy or ("always_ask" if tool.asks else "always_allow"),
            call=partial(_call, tool),
            plan_wait=partial(_plan_wait, tool, tool.plan_wait) if isinstance(tool, Waiting) else None,
        )

    def _wanted(self, config: AgentConfig) -> dict[str, Policy | None]:
        """By name. What is gone is left out: an agent version outlives the tools it names."""
        wanted: dict[str, Policy | None] = {}
        for listed in config.tools:
            match listed:
                case Toolset():
                    wanted |= {name: listed.policy(name) for name in self._tools if self._in_set(listed, name)}
                case FunctionTool(name=name, permission_policy=said) if name in self._tools:
                    wanted[name] = None if said is None else said.type
                case _:
                    pass
        return wanted

    def _in_set(self, toolset: Toolset, name: str) -> bool:
        return name in self._builtin and toolset.config(name).enabled


async def _call(tool: Tool, input: Mapping[str, JsonValue], context: ToolContext) -> str | ToolAnswer:
    return await tool.call(_arguments(tool, input), context)


def _plan_wait(tool: Tool, plan: Callable[[BaseModel], Wait], input: Mapping[str, JsonValue]) -> Wait:
    return plan(_arguments(tool, input))


def _arguments(tool: Tool, input: Mapping[str, JsonValue]) -> BaseModel:
    try:
        return tool.arguments.model_validate(input)
    except ValidationError as error:
        raise ToolFailed(_faults(error)) from error


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
