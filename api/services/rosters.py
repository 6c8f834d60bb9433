"""The agents that an agent may delegate to: found and pinned to a version when it is stored, not when it runs."""

from domain.agents import AgentConfig, AgentVersion
from domain.errors import Archived, Conflict, Invalid, NotFound, Pointer
from domain.multiagent import Multiagent, RosterAgent, RosterSelf
from storage.agents import Agents

Pin = tuple[str, int]


async def pinned(agents: Agents, config: AgentConfig, own: AgentVersion | None = None) -> AgentConfig:
    """The configuration with its roster pinned. `own`: the agent's newest version, where it has one.

    Raises Invalid for an agent that there is not, is archived or stands there twice, and for a cycle beyond the depth.
    """
    multiagent = config.multiagent
    if multiagent is None:
        return config
    entries: list[RosterAgent | RosterSelf] = []
    for index, entry in enumerate(multiagent.agents):
        entries.append(await _pin(agents, entry, own, f"/multiagent/agents/{index}"))
    names = [config.name if isinstance(entry, RosterSelf) else entry.name for entry in entries]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise _fault(f"/multiagent/agents/{index}", f"Two agents of the roster are called {name!r}.")
    await _check_depth(agents, multiagent, entries, own)
    return config.model_copy(update={"multiagent": multiagent.model_copy(update={"agents": tuple(entries)})})


async def _pin(
    agents: Agents, entry: RosterAgent | RosterSelf, own: AgentVersion | None, pointer: str
) -> RosterAgent | RosterSelf:
    if isinstance(entry, RosterSelf):
        return entry
    try:
        found = await agents.resolve(entry.id, entry.version)
    except (NotFound, Archived, Conflict) as error:
        raise _fault(pointer, error.message) from error
    if own is not None and found.id == own.id and found.version == own.version:
        return RosterSelf()  # which is how it is shown
    return RosterAgent(id=found.id, version=found.version, name=found.config.name, description=found.config.description)


async def _check_depth(
    agents: Agents, multiagent: Multiagent, entries: list[RosterAgent | RosterSelf], own: AgentVersion | None
) -> None:
    """Versions never change, so a cycle leads from an agent to an older version of one that it passed. `self` is bounded by
    the depth and meant so; a chain that comes back only beyond it could never be walked."""
    seen = {own.id} if own is not None else set[str]()
    level = _pins(entries)
    for _ in range(multiagent.max_depth):
        seen |= {id for id, _ in level}
        configs = await agents.many(level)
        level = {pin for found in configs.values() if found.config.multiagent for pin in _pins(found.config.multiagent.agents)}
    if back := sorted(id for id, _ in level if id in seen):
        detail = f"The roster leads back to {back[0]} more than {multiagent.max_depth} levels down, which is `max_depth`."
        raise _fault("/multiagent/agents", detail)


def _pins(entries: "tuple[RosterAgent | RosterSelf, ...] | list[RosterAgent | RosterSelf]") -> set[Pin]:
    return {(entry.id, entry.version or 1) for entry in entries if isinstance(entry, RosterAgent)}


def _fault(pointer: str, detail: str) -> Invalid:
    return Invalid(detail, Pointer(pointer=pointer, detail=detail))
