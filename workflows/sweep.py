"""The workflows of the sweeper."""

from temporalio import workflow

from activities.sweep import SweepActivities
from domain.commands import SweepResult
from workflows import options

SCHEDULE_ID = "perdure-sweep"


@workflow.defn(name="sweep")
class Sweep:
    @workflow.run
    async def run(self) -> SweepResult:
        return await workflow.execute_activity_method(SweepActivities.run, **options.sweep())


@workflow.defn(name="settle")
class Settle:
    """Settles one run at once, instead of at the next sweep."""

    @workflow.run
    async def run(self, run_id: str) -> None:
        await workflow.execute_activity_method(SweepActivities.settle, run_id, **options.record("settle"))
