"""The workflows of the sweeper."""

import contextlib
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.sweep import SweepActivities
from workflows import options

SCHEDULE_ID = "perdure-sweep"
EVERY = timedelta(seconds=10)
ROUNDS = 180


@workflow.defn(name="sweep")
class Sweep:
    """Sweeps for half an hour, then makes room for the next one: a workflow per sweep would bury the runs in Temporal's UI."""

    @workflow.run
    async def run(self) -> None:
        for _ in range(ROUNDS):
            with contextlib.suppress(ActivityError):  # the database or visibility is away: the next round tries again
                await workflow.execute_activity_method(SweepActivities.run, **options.sweep())
            await workflow.sleep(EVERY)


@workflow.defn(name="settle")
class Settle:
    """Settles one run at once, instead of at the next sweep."""

    @workflow.run
    async def run(self, run_id: str) -> None:
        await workflow.execute_activity_method(SweepActivities.settle, run_id, **options.record("settle"))
