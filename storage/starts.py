"""From a stored run to the input of its workflow. Used where a run is created and where the next one is taken up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from domain.agents import AgentConfig, Limits
from domain.clock import now
from domain.commands import PauseSignal, Progress, RunStart, TitleStart
from domain.ids import new_id
from domain.runs import RunStatus
from storage.tables import RunRow, SessionRow


def nobody(_model: str) -> None:
    """No model writes titles."""


@dataclass(frozen=True)
class Route:
    """Where a provider's model calls run, how long one may take, and who names the sessions that it answers in."""

    queue: str | None = None
    timeout_seconds: int = 900
    titles: Callable[[str], str | None] = nobody
    """From an agent's model to the one that writes the titles of its sessions, if one does."""


def queued_run(
    session: SessionRow,
    config: AgentConfig,
    *,
    kind: Literal["turn", "task"],
    limits: Limits | None,
    metadata: Mapping[str, str],
    batch_id: str | None = None,
) -> RunRow:
    """A fresh run. `limits` None: the agent's own."""
    moment = now()
    return RunRow(
        id=new_id("run"),
        workspace_id=session.workspace_id,
        session_id=session.id,
        kind=kind,
        agent_id=session.agent_id,
        agent_version=session.agent_version,
        agent_name=config.name,
        model=config.model.id,
        status=RunStatus.QUEUED,
        limits=(limits or config.limits).model_dump(mode="json"),
        meta=dict(metadata),
        batch_id=batch_id,
        created_at=moment,
        touched_at=moment,
    )


def run_start(row: RunRow, routes: Mapping[str, Route]) -> RunStart:
    """`routes` by provider name."""
    route = _route(row.model, routes)
    return RunStart(
        run_id=row.id,
        session_id=row.session_id,
        workspace_id=row.workspace_id,
        agent=row.agent_name,
        model=row.model,
        limits=Limits.model_validate(row.limits),
        attempt=row.attempt,
        model_queue=route.queue,
        model_timeout_seconds=route.timeout_seconds,
        progress=Progress(),
        background=row.batch_id is not None or row.bulk_id is not None,
        pause=None if row.pause_requested_at is None else PauseSignal(mode="now" if row.pause_mode == "now" else "step"),
    )


def title_start(row: RunRow, routes: Mapping[str, Route]) -> TitleStart | None:
    """To have the title of the run's session written, of what was said in the run. None: no model does that."""
    model = _route(row.model, routes).titles(row.model)
    if model is None:
        return None
    return TitleStart(
        session_id=row.session_id,
        workspace_id=row.workspace_id,
        run_id=row.id,
        model=model,
        queue=_route(model, routes).queue,
    )


def _route(model: str, routes: Mapping[str, Route]) -> Route:
    return routes.get(model.partition(":")[0], Route())
