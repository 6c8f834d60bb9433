"""What an agent may name: providers, models and tools. Checked when the agent is made, not when it runs."""

from domain.agent_tools import TOOLSET_TOOLS, CustomTool, FunctionTool, HttpTool, McpToolset, Toolset
from domain.agents import AgentConfig
from domain.errors import Invalid, Pointer
from domain.multiagent import DELEGATE
from domain.secrets import Secrets
from providers.config import CommandConfig, ScriptedConfig
from providers.registry import Providers
from tools.http_tools import faults
from tools.mcp.source import McpTools
from tools.registry import Tools
from tools.schemas import Schema, SchemaFault
from tools.shell import Bash
from tools.web_search import WebSearch


class Catalog:
    def __init__(self, providers: Providers, tools: Tools, mcp: McpTools, secrets: Secrets) -> None:
        self.providers = providers
        self.tools = tools
        self.mcp = mcp
        self.secrets = secrets

    async def check(self, config: AgentConfig) -> None:
        """Raises Invalid, with the known ones, for a provider, model, tool, MCP server or secret that is not there for it."""
        name = config.model.provider
        if name not in self.providers.names:
            raise _unknown("/model", f"provider {name!r}", self.providers.names)
        kind = self.providers.configs[name]
        if isinstance(kind, ScriptedConfig | CommandConfig):
            # Only these know their models by themselves; a vendor's list changes, and the vendor says no by itself.
            models = [model.name for model in await self.providers.get(name).models()]
            if config.model.name not in models:
                raise _unknown("/model", f"model {config.model.id!r}", [f"{name}:{model}" for model in models])
        for index, server in enumerate(config.mcp_servers):
            if refusal := self.mcp.refusal(server):
                raise _fault(f"/mcp_servers/{index}", refusal)
        for index, tool in enumerate(config.tools):
            match tool:
                case FunctionTool(name=wanted):
                    self._check_tool(wanted, f"/tools/{index}")
                case Toolset(configs=configs):
                    for entry in configs:
                        if entry.enabled or entry.name not in TOOLSET_TOOLS:  # to do without what is not there is fine
                            self._check_tool(entry.name, f"/tools/{index}/configs")
                    if tool.network:
                        self._check_network(f"/tools/{index}/configs")
                case CustomTool(name=name, input_schema=schema):
                    self._check_free(name, index)
                    try:
                        Schema(schema)
                    except SchemaFault as error:
                        raise _fault(f"/tools/{index}/input_schema", f"This is no JSON Schema: {error.detail}") from error
                case HttpTool(name=name):
                    self._check_free(name, index)
                    if found := faults(tool, self.secrets, f"/tools/{index}"):
                        raise Invalid(f"{tool.name}: {found[0].detail}", *found)
                case McpToolset():
                    pass  # what its server has, only the server knows

    def _check_free(self, name: str, index: int) -> None:
        """Beside the built-in tool of that name it would never be called."""
        if self.tools.is_builtin(name) or name == DELEGATE:
            raise _fault(f"/tools/{index}/name", f"{name} is a built-in tool: take another name.")

    def _check_tool(self, name: str, pointer: str) -> None:
        if self.tools.get(name) is None:
            if name == WebSearch.name:
                detail = "There is no web search here: the operator has set up none ([tools.web_search] in perdure.toml)."
                raise Invalid(detail, Pointer(pointer=pointer, detail=detail))
            raise _unknown(pointer, f"tool {name!r}", self.tools.names)

    def _check_network(self, pointer: str) -> None:
        shell = self.tools.get("bash")
        if not (isinstance(shell, Bash) and shell.may_have_network):
            detail = "No shell may have the network here: the operator allows it in perdure.toml, [tools.shell] network."
            raise Invalid(detail, Pointer(pointer=pointer, detail=detail))


def _fault(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, Pointer(pointer=pointer, detail=detail))


def _unknown(pointer: str, what: str, known: "tuple[str, ...] | list[str]") -> Invalid:
    return _fault(pointer, f"There is no {what}. Known: {', '.join(known)}.")
