"""The workflow that names a session."""

import contextlib

from temporalio import workflow
from temporalio.exceptions import ActivityError

from activities.titles import TitleActivities
from domain.commands import TitleStart
from workflows import options


@workflow.defn(name="session_title")
class SessionTitle:
    """Once in a session's life, beside its turns: none of them waits for it."""

    @workflow.run
    async def run(self, start: TitleStart) -> None:
        with contextlib.suppress(ActivityError):  # a session without a title is no failure
            await workflow.execute_activity_method(TitleActivities.write, start, **options.title(start.queue))
