"""What an agent may name: providers, models and tools. Checked when the agent is made, not when it runs."""

from domain.agent_tools import CustomTool, FunctionTool, Toolset
from domain.agents import AgentConfig
from domain.errors import Invalid, Pointer
from domain.multiagent import DELEGATE
from providers.config import CommandConfig, ScriptedConfig
from providers.registry import Providers
from tools.json_schema import schema_fault
from tools.registry import Tools


class Catalog:
    def __init__(self, providers: Providers, tools: Tools) -> None:
        self.providers = providers
        self.tools = tools

    async def check(self, config: AgentConfig) -> None:
        """Raises Invalid, with the known ones, for a provider, model or tool that does not exist."""
        name = config.model.provider
        if name not in self.providers.names:
            raise _unknown("/model", f"provider {name!r}", self.providers.names)
        kind = self.providers.configs[name]
        if isinstance(kind, ScriptedConfig | CommandConfig):
            # Only these know their models by themselves; a vendor's list changes, and the vendor says no by itself.
            models = [model.name for model in await self.providers.get(name).models()]
            if config.model.name not in models:
                raise _unknown("/model", f"model {config.model.id!r}", [f"{name}:{model}" for model in models])
        for index, tool in enumerate(config.tools):
            match tool:
                case FunctionTool(name=wanted):
                    self._check_tool(wanted, f"/tools/{index}")
                case Toolset(configs=configs):
                    for entry in configs:
                        self._check_tool(entry.name, f"/tools/{index}/configs")
                case CustomTool(name=name, input_schema=schema):
                    if self.tools.is_builtin(name) or name == DELEGATE:
                        raise _fault(f"/tools/{index}/name", f"{name} is a built-in tool: take another name.")
                    if fault := schema_fault(schema):
                        raise _fault(f"/tools/{index}/input_schema", f"This is no JSON Schema: {fault}")

    def _check_tool(self, name: str, pointer: str) -> None:
        if self.tools.get(name) is None:
            raise _unknown(pointer, f"tool {name!r}", self.tools.names)


def _fault(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, Pointer(pointer=pointer, detail=detail))


def _unknown(pointer: str, what: str, known: "tuple[str, ...] | list[str]") -> Invalid:
    return _fault(pointer, f"There is no {what}. Known: {', '.join(known)}.")
