"""From a stored run to the input of its workflow. Used where a run is created and where the next one is taken up."""

from collections.abc import Mapping
from dataclasses import dataclass

from domain.agents import Limits
from domain.commands import PauseSignal, Progress, RunStart
from storage.tables import RunRow


@dataclass(frozen=True)
class Route:
    """Where a provider's model calls run and how long one may take."""

    queue: str | None = None
    timeout_seconds: int = 900


def run_start(row: RunRow, routes: Mapping[str, Route]) -> RunStart:
    """`routes` by provider name."""
    route = routes.get(row.model.partition(":")[0], Route())
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
        pause=None if row.pause_requested_at is None else PauseSignal(mode="now" if row.pause_mode == "now" else "step"),
    )
