"""Imports: a new session out of a document that was checked."""

from itertools import islice
from typing import BinaryIO

from api.imports import Checked, DocumentAgent, read_events
from api.services.catalog import Catalog
from api.services.forks import CUT_OFF, Watch
from api.services.rosters import pinned
from api.transaction import Unit
from domain.agents import AgentConfig, AgentVersion
from domain.clock import now
from domain.copies import Renaming
from domain.errors import Invalid, Pointer
from domain.ids import new_id
from domain.multiagent import RosterAgent, thread_of
from domain.runs import RunStatus
from storage.agents import Agents
from storage.copies import PAGE, LogCopy
from storage.sessions import enter
from storage.tables import RunRow, SessionRow

Place = tuple[str, int]


async def import_session(
    unit: Unit, catalog: Catalog, checked: Checked, file: BinaryIO, agent: AgentVersion | None
) -> SessionRow:
    """Write it, idle. `agent`: in place of the document's own, which else are made, inline. Raises Invalid, CopyTooSlow."""
    watch = Watch()
    agents = await _agents(unit, catalog, checked, agent)
    first = agents[_place(checked.agents[0])]
    said, moment = checked.session, now()
    row = SessionRow(
        id=new_id("sesn"),
        workspace_id=unit.caller.workspace_id,
        agent_id=first.id,
        agent_version=first.version,
        title=said.title,
        titling=None if said.title is None else "done",
        meta=said.metadata,
        tags=list(dict.fromkeys(said.tags)),
        queue_depth=said.queue_depth,
        on_busy=said.on_busy,
        # What somebody elsewhere need not be asked about, people here are.
        permissions={name: policy for name, policy in said.permissions.items() if policy != "always_allow"},
        environment_id=said.environment_id,
        created_at=moment,
        updated_at=moment,
    )
    await enter(unit.connection, row)
    renaming = Renaming((said.id, row.id), checked.outline, checked.selection)
    runs = [_run(checked, id, row, agents) for id in checked.selection.run_ids]
    copy = LogCopy(unit.connection, row, renaming, checked.selection, runs)
    events = read_events(file)
    while page := list(islice(events, PAGE)):
        await copy.take(page)
        await watch.pause()
    await copy.close(unit.journal, CUT_OFF)
    return row


async def _agents(unit: Unit, catalog: Catalog, checked: Checked, agent: AgentVersion | None) -> dict[Place, AgentVersion]:
    """The agents here, by those of the document."""
    if agent is not None:
        return {_place(found): agent for found in checked.agents}
    agents = Agents(unit.connection, unit.caller.workspace_id)
    made: dict[Place, AgentVersion] = {}
    for found in (*checked.agents[1:], checked.agents[0]):  # those that others delegate to come first
        try:
            config = _renamed(found.config, made)
            await catalog.check(config)
            made[_place(found)] = await agents.create(await pinned(agents, config), inline=True)
        except Invalid as error:
            faults = [Pointer(pointer=f"{found.pointer}{fault.pointer}", detail=fault.detail) for fault in error.faults]
            advice = "import it with `agent`, the name of an agent that is here"
            raise Invalid(f"The agent {found.config.name!r} cannot be here: {error.message} Or {advice}.", *faults) from error
    return made


def _renamed(config: AgentConfig, made: dict[Place, AgentVersion]) -> AgentConfig:
    if config.multiagent is None:
        return config
    roster = [
        RosterAgent(id=made[entry.id, entry.version or 1].id, version=1) if isinstance(entry, RosterAgent) else entry
        for entry in config.multiagent.agents
    ]
    return config.model_copy(update={"multiagent": config.multiagent.model_copy(update={"agents": tuple(roster)})})


def _run(checked: Checked, run_id: str, session: SessionRow, agents: dict[Place, AgentVersion]) -> RunRow:
    """The run as if it were stored, under its old id."""
    run = checked.runs[run_id]
    agent = agents[run.agent.id, run.agent.version]
    return RunRow(
        id=run.id,
        workspace_id=session.workspace_id,
        session_id=session.id,
        kind=run.kind,
        agent_id=agent.id,
        agent_version=agent.version,
        agent_name=run.agent.name,
        model=agent.config.model.id,
        status=RunStatus.QUEUED,
        limits=run.limits.model_dump(mode="json"),
        meta=run.metadata,
        parent_run_id=run.parent_run_id,
        thread_id=None if run.parent_run_id is None else thread_of(run.id),
        created_at=min(run.created_at, now()),
        touched_at=now(),
    )


def _place(agent: DocumentAgent) -> Place:
    return (agent.place.id, agent.place.version)
