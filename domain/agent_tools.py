"""What an agent says about its tools: which it may use, and whether a person is asked first."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, WithJsonSchema, field_validator, model_validator

from domain.mcp import ServerName
from domain.strict import Strict

TOOLSET = "agent_toolset_20260401"
"""The `anthropic` package's name for the set of built-in tools."""

TOOLSET_TOOLS = ("bash", "edit", "glob", "grep", "read", "web_fetch", "web_search", "write")
"""The names that this toolset has in that package (types/beta/beta_managed_agents_agent_tool_config.py)."""

Policy = Literal["always_allow", "always_ask", "always_deny"]

ASKING: tuple[str, ...] = ("bash",)
"""Those of them of which a person is asked first, where the agent does not say."""

ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
"""What both the Anthropic and the OpenAI API accept as the name of a tool."""


class PermissionPolicy(Strict):
    """Whether a call is made at once, only after a person's approval, or never. Without one: the tool's own default."""

    type: Policy


class ToolConfig(Strict):
    name: str
    type: str | None = None
    enabled: bool = True
    permission_policy: PermissionPolicy | None = None
    network: bool = False
    """Of `bash` only: whether its commands have the network, where the operator allows that."""

    @field_validator("network")
    @classmethod
    def _of_bash(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("name") != "bash":
            raise ValueError("only bash can be given the network")
        return value


class ToolDefault(Strict):
    enabled: bool = True
    permission_policy: PermissionPolicy | None = None


class Toolset(Strict):
    """The built-in tools; `configs` switches single ones on or off against `default_config`."""

    type: Literal["agent_toolset_20260401"] = TOOLSET
    configs: tuple[ToolConfig, ...] = ()
    default_config: ToolDefault = ToolDefault()

    def config(self, name: str) -> ToolConfig | ToolDefault:
        """What is said about the tool of that name."""
        return next((config for config in self.configs if config.name == name), self.default_config)

    @property
    def network(self) -> bool:
        """Whether commands of `bash` have the network."""
        return any(config.network for config in self.configs)

    def policy(self, name: str) -> Policy | None:
        said = self.config(name).permission_policy or self.default_config.permission_policy
        return None if said is None else said.type


class FunctionTool(Strict):
    """A tool by its name: a Python function that the operator registered, or one built-in tool."""

    type: Literal["function"] = "function"
    name: str
    permission_policy: PermissionPolicy | None = None


def _object_schema(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if schema.get("type") != "object":
        raise ValueError('the schema of a tool\'s input has "type": "object"')
    return schema


_SCHEMA = {"type": "object", "description": "A JSON Schema whose type is object."}
InputSchema = Annotated[dict[str, JsonValue], AfterValidator(_object_schema), WithJsonSchema(_SCHEMA)]


class CustomTool(Strict):
    """A tool that the caller runs: `agent.custom_tool_use` goes out, `user.custom_tool_result` comes back."""

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str = Field(min_length=1, max_length=10_000)
    input_schema: InputSchema


class McpToolDefault(Strict):
    """What is left out (or null, as the `anthropic` package's clients may send it) is left to the default."""

    enabled: bool | None = None
    permission_policy: PermissionPolicy | None = None


class McpToolConfig(McpToolDefault):
    name: str = Field(min_length=1, max_length=128)


class McpToolset(Strict):
    """The tools of one of the agent's MCP servers. A person is asked before each call, where the agent does not say."""

    type: Literal["mcp_toolset"] = "mcp_toolset"
    mcp_server_name: ServerName
    configs: tuple[McpToolConfig, ...] = Field(default=(), max_length=1_000)
    default_config: McpToolDefault | None = None

    def enabled(self, name: str) -> bool:
        for said in self._said(name):
            if said.enabled is not None:
                return said.enabled
        return True

    def policy(self, name: str) -> Policy:
        for said in self._said(name):
            if said.permission_policy is not None:
                return said.permission_policy.type
        return "always_ask"

    def _said(self, name: str) -> "list[McpToolDefault]":
        """What is said about a tool: of itself, then of all."""
        own = [config for config in self.configs if config.name == name]
        return [*own, self.default_config] if self.default_config else [*own]

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if len({config.name for config in self.configs}) != len(self.configs):
            raise ValueError("a tool of the MCP server is configured twice")
        return self


class HttpTool(Strict):
    """An endpoint of the agent's owner as a tool: each call is a POST to `url`, signed with the secret of that name."""

    type: Literal["http"] = "http"
    name: ToolName
    description: str = Field(min_length=1, max_length=10_000)
    input_schema: InputSchema
    url: str = Field(max_length=2_000, pattern=r"^https?://[^\s/?#@\\]+([/?][^\s#\\]*)?$")
    effect: Literal["read", "idempotent", "once"] = "once"
    """What repeating a call means: see docs/how-to/add-a-tool.md."""
    timeout_seconds: float = Field(default=30, gt=0, le=600, allow_inf_nan=False)
    secret: str | None = Field(default=None, max_length=64)
    """The name of an operator's secret; None: calls are not signed."""
    permission_policy: PermissionPolicy | None = None


AnyTool = Toolset | FunctionTool | CustomTool | HttpTool | McpToolset
AgentTool = Annotated[AnyTool, Field(discriminator="type")]


def names_of(tool: AnyTool) -> str:
    """What may stand only once in an agent's list."""
    match tool:
        case Toolset():
            return tool.type
        case McpToolset():
            return f"{tool.type} {tool.mcp_server_name}"
        case _:
            return tool.name


def spelled_out(tools: "list[Any] | tuple[Any, ...]") -> list[Any]:
    """Bare names as tools: those of the toolset become one toolset with only them, in which any client can read them."""
    names = [tool for tool in tools if isinstance(tool, str) and tool in TOOLSET_TOOLS]
    out = [{"type": "function", "name": t} if isinstance(t, str) else t for t in tools if t not in names]
    if names:
        configs = [{"name": name, "enabled": True} for name in names]
        out.insert(0, {"type": TOOLSET, "default_config": {"enabled": False}, "configs": configs})
    return out
