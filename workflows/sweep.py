"""The workflows of the sweeper."""

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.sweep import SweepActivities
from domain.commands import SweepInput
from workflows import options

EVERY = timedelta(seconds=10)
ROUNDS = 180


@workflow.defn(name="sweep")
class Sweep:
    """Sweeps for half an hour, then makes room for the next one: a workflow per sweep would bury the runs in Temporal's UI."""

    @workflow.run
    async def run(self) -> None:
        since: datetime | None = None
        for _ in range(ROUNDS):
            begun = workflow.now()  # by Temporal's clock, as the times in its list are
            try:
                await workflow.execute_activity_method(SweepActivities.run, SweepInput(since=since), **options.sweep())
                since = begun
            except ActivityError:
                pass  # the database or Temporal's list is away: the next round tries again, and looks back as far
            await workflow.sleep(EVERY)


@workflow.defn(name="settle")
class Settle:
    """Settles one run at once, instead of at the next sweep."""

    @workflow.run
    async def run(self, run_id: str) -> None:
        await workflow.execute_activity_method(SweepActivities.settle, run_id, **options.record("settle"))
