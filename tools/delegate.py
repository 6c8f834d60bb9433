"""The tool `delegate`: hands a task to another agent, which works on it in a run of its own."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import Field, JsonValue, ValidationError

from domain.agents import AgentConfig
from domain.completions import ToolSpec
from domain.errors import ToolFailed
from domain.multiagent import DELEGATE, Multiagent, RosterAgent, RosterSelf
from domain.strict import Strict
from domain.tools import Effect, OfferedTool, ToolCall, ToolContext, Wait

_DESCRIPTION = (
    "Hand a task to another agent and get its answer. It sees nothing of this conversation: say everything that it needs to "
    "know. Several calls in one answer are worked on at the same time. The agents:\n"
)


class Delegation(Strict):
    """The arguments."""

    agent: str
    task: str = Field(min_length=1, max_length=100_000)
    title: str | None = Field(default=None, max_length=200)


def delegation(input: Mapping[str, JsonValue]) -> Delegation:
    """Raises ToolFailed."""
    try:
        return Delegation.model_validate(input)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}" for fault in faults]
        raise ToolFailed("invalid arguments\n" + "\n".join(lines)) from error


def member(config: AgentConfig, multiagent: Multiagent, name: str) -> RosterAgent | RosterSelf:
    """The agent of the roster that is called so. Raises ToolFailed."""
    names = roster(config, multiagent)
    if name not in names:
        raise ToolFailed(f"there is no agent {name[:100]!r} to delegate to; there are: {', '.join(names)}")
    return names[name]


def roster(config: AgentConfig, multiagent: Multiagent) -> dict[str, RosterAgent | RosterSelf]:
    """By the names that the model uses."""
    return {_named(config, entry)[0]: entry for entry in multiagent.agents}


class Delegating:
    """The source of the tool, for agents that have a roster."""

    async def offered(self, config: AgentConfig) -> Sequence[OfferedTool]:
        multiagent = config.multiagent
        if multiagent is None:
            return []
        policy = multiagent.permission_policy
        return [
            OfferedTool(
                spec=_spec(config, multiagent),
                effect=Effect.ONCE,
                timeout_seconds=1.0,
                policy="always_allow" if policy is None else policy.type,
                call=_refuse(config, multiagent),
                plan_wait=_plan(config, multiagent),
            )
        ]


def _plan(config: AgentConfig, multiagent: Multiagent) -> Callable[[Mapping[str, JsonValue]], Wait]:
    def plan(input: Mapping[str, JsonValue]) -> Wait:
        member(config, multiagent, delegation(input).agent)
        return Wait("subagent", at_once=multiagent.max_concurrent)

    return plan


def _refuse(config: AgentConfig, multiagent: Multiagent) -> ToolCall:
    async def refuse(input: Mapping[str, JsonValue], context: ToolContext) -> str:
        """Only reached with arguments that cannot be delegated with. Raises ToolFailed."""
        member(config, multiagent, delegation(input).agent)
        raise ToolFailed("nothing is delegated here")

    return refuse


def _spec(config: AgentConfig, multiagent: Multiagent) -> ToolSpec:
    lines = [f"- {name}: {said}" for name, said in (_named(config, entry) for entry in multiagent.agents)]
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {
            "agent": {"type": "string", "enum": [*roster(config, multiagent)]},
            "task": {"type": "string", "minLength": 1, "description": "The task, with all that is needed to do it."},
            "title": {"type": "string", "maxLength": 200, "description": "A few words, for people who watch."},
        },
        "required": ["agent", "task"],
        "additionalProperties": False,
    }
    return ToolSpec(name=DELEGATE, description=_DESCRIPTION + "\n".join(lines), input_schema=schema)


def _named(config: AgentConfig, entry: RosterAgent | RosterSelf) -> tuple[str, str]:
    if isinstance(entry, RosterSelf):
        return config.name, "another run of this agent itself"
    return entry.name or entry.id, entry.description or "no description"
