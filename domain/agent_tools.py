"""What an agent says about its tools: which it may use, and whether a person is asked first."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationInfo, field_validator

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


InputSchema = Annotated[dict[str, JsonValue], AfterValidator(_object_schema)]


class CustomTool(Strict):
    """A tool that the caller runs: `agent.custom_tool_use` goes out, `user.custom_tool_result` comes back."""

    type: Literal["custom"] = "custom"
    name: ToolName
    description: str = Field(min_length=1, max_length=10_000)
    input_schema: InputSchema
    permission_policy: PermissionPolicy | None = None


AgentTool = Annotated[Toolset | FunctionTool | CustomTool, Field(discriminator="type")]


def names_of(tool: Toolset | FunctionTool | CustomTool) -> str:
    """What may stand only once in an agent's list."""
    return tool.type if isinstance(tool, Toolset) else tool.name


def spelled_out(tools: "list[Any] | tuple[Any, ...]") -> list[Any]:
    """Bare names as tools: those of the toolset become one toolset with only them, in which any client can read them."""
    names = [tool for tool in tools if isinstance(tool, str) and tool in TOOLSET_TOOLS]
    out = [{"type": "function", "name": t} if isinstance(t, str) else t for t in tools if t not in names]
    if names:
        configs = [{"name": name, "enabled": True} for name in names]
        out.insert(0, {"type": TOOLSET, "default_config": {"enabled": False}, "configs": configs})
    return out
