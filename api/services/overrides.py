"""An agent for one session, with some things said otherwise: another agent that is listed nowhere; the stored one stays."""

from typing import Annotated, Any, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.services.catalog import Catalog
from domain.agents import AgentConfig, AgentTool, AgentVersion, ModelConfig
from domain.mcp import McpServer
from storage.agents import Agents


class SessionAgentUpdate(BaseModel):
    """The `anthropic` package's BetaManagedAgentsSessionAgentUpdateParam: whole lists, in place of those that hold."""

    model_config = ConfigDict(extra="forbid")

    tools: tuple[str | AgentTool, ...] = ()
    mcp_servers: Annotated[tuple[McpServer, ...], Field(max_length=20)] = ()


class AgentWithOverrides(SessionAgentUpdate):
    """The package's BetaManagedAgentsAgentWithOverridesParams: members left out are the agent's own."""

    type: Literal["agent_with_overrides"]
    id: str
    version: Annotated[int, Field(ge=1, le=2_000_000_000, strict=True)] | None = None
    model: str | ModelConfig | None = None
    system: str | None = None
    skills: tuple[()] = ()


async def overridden(
    agents: Agents, catalog: Catalog, agent: AgentVersion, said: SessionAgentUpdate | AgentWithOverrides
) -> AgentVersion:
    """Raises RequestValidationError and Invalid, as for an agent that is created."""
    given = said.model_dump(exclude_unset=True, include={"model", "system", "tools", "mcp_servers"})
    merged: dict[str, Any] = {**agent.config.model_dump(), **given}
    try:
        config = AgentConfig.model_validate(merged)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", "agent", *fault["loc"])} for fault in error.errors()]
        raise RequestValidationError(faults, body={"agent": merged}) from error
    if config == agent.config:
        return agent
    await catalog.check(config)
    return await agents.create(config, inline=True)
