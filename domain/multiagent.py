"""Sub-agents: which agents an agent may delegate to, and the threads of a session that their runs are on."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from domain.agent_tools import PermissionPolicy
from domain.strict import Strict

DELEGATE = "delegate"
"""The tool by which a model delegates."""


class RosterAgent(Strict):
    """An agent that may be delegated to. `id` may be a name where it is written; it is stored as an id, at a version."""

    type: Literal["agent"] = "agent"
    id: str = Field(min_length=1, max_length=256)
    version: int | None = Field(default=None, ge=1, le=2_000_000_000, strict=True)
    name: str | None = None
    """What the model calls it, and …"""
    description: str | None = None
    """… what it is told of it: both are the agent's own, whatever is sent."""


class RosterSelf(Strict):
    """The agent itself."""

    type: Literal["self"] = "self"


def _spelled_out(entry: Any) -> Any:
    return {"type": "agent", "id": entry} if isinstance(entry, str) else entry


RosterEntry = Annotated[
    Annotated[RosterAgent | RosterSelf, Field(discriminator="type")],
    BeforeValidator(_spelled_out, json_schema_input_type=Annotated[str, Field(min_length=1)] | RosterAgent | RosterSelf),
]


class Multiagent(Strict):
    """The `anthropic` package's coordinator (types/beta/beta_managed_agents_multiagent_coordinator_params.py), with bounds."""

    type: Literal["coordinator"] = "coordinator"
    agents: tuple[RosterEntry, ...] = Field(min_length=1, max_length=20)
    max_depth: int = Field(default=3, ge=1, le=10, strict=True)
    """Levels of delegation below this agent; one that is delegated to may be held to fewer."""
    max_concurrent: int = Field(default=8, ge=1, le=100, strict=True)
    """How many of one run's delegations are at work at once; further ones wait their turn."""
    result_chars: int = Field(default=8000, ge=200, le=100_000, strict=True)
    """How much of an answer the model that delegated reads; the thread has the rest."""
    permission_policy: PermissionPolicy | None = None
    """Whether a person is asked before something is delegated."""


def thread_of(id: str) -> str:
    """The id of a sub-agent run's thread; of a session id, that of its primary thread."""
    return f"sthr_{id.partition('_')[2]}"


def run_of_thread(thread_id: str) -> str:
    """The run of a thread that is not the primary one."""
    return f"run_{thread_id.partition('_')[2]}"
