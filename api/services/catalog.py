"""What an agent may name: providers, models and tools. Checked when the agent is made, not when it runs."""

from domain.agent_tools import FunctionTool, Toolset
from domain.agents import AgentConfig
from domain.errors import Invalid, Pointer
from providers.config import CommandConfig, ScriptedConfig
from providers.registry import Providers
from tools.registry import Tools
from tools.shell import Bash


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
                    if tool.network:
                        self._check_network(f"/tools/{index}/configs")
                case _:
                    pass

    def _check_tool(self, name: str, pointer: str) -> None:
        if self.tools.get(name) is None:
            raise _unknown(pointer, f"tool {name!r}", self.tools.names)

    def _check_network(self, pointer: str) -> None:
        shell = self.tools.get("bash")
        if not (isinstance(shell, Bash) and shell.may_have_network):
            detail = "No shell may have the network here: the operator allows it in perdure.toml, [tools.shell] network."
            raise Invalid(detail, Pointer(pointer=pointer, detail=detail))


def _unknown(pointer: str, what: str, known: "tuple[str, ...] | list[str]") -> Invalid:
    detail = f"There is no {what}. Known: {', '.join(known)}."
    return Invalid(detail, Pointer(pointer=pointer, detail=detail))
