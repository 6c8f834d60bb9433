"""Tools that the caller runs: the model is told of them, and the workflow waits for their results."""

from collections.abc import Sequence

from domain.agent_tools import CustomTool
from domain.agents import AgentConfig
from domain.completions import ToolSpec
from domain.tools import Effect, OfferedTool


class CustomTools:
    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        return [_offer(tool) for tool in config.tools if isinstance(tool, CustomTool)]


def _offer(tool: CustomTool) -> OfferedTool:
    return OfferedTool(
        spec=ToolSpec(name=tool.name, description=tool.description, input_schema=tool.input_schema),
        effect=Effect.ONCE,
        timeout_seconds=1.0,
        policy="always_allow" if tool.permission_policy is None else tool.permission_policy.type,
        call=None,
        waits_for="tool_result",
        kind="custom",
    )
