"""Activities that a killed process left behind. In the one-process shape nobody else can be running them."""

import contextlib
from datetime import timedelta

from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from workflows import attributes

_QUERIES = (
    f"ExecutionStatus = 'Running' AND {attributes.STATUS.name} = 'running'",  # what waits or is paused has none in flight
    "ExecutionStatus = 'Running' AND WorkflowType IN ('sweep', 'batch', 'bulk_operation')",
)


async def release_lost_activities(client: Client) -> int:
    """Have them tried again now, instead of when their heartbeat is missed (12 s); how many.

    Only for a process that holds the data folder of the embedded Temporal, and before its own worker starts.
    """
    released = 0
    lost = ApplicationError("The worker was lost.", type="worker_lost", next_retry_delay=timedelta(milliseconds=1))
    for query in _QUERIES:
        async for execution in client.list_workflows(query):
            description = await client.get_workflow_handle(execution.id, run_id=execution.run_id).describe()
            for pending in description.raw_description.pending_activities:
                if pending.state != PendingActivityState.PENDING_ACTIVITY_STATE_STARTED:
                    continue
                handle = client.get_async_activity_handle(
                    workflow_id=execution.id, run_id=execution.run_id, activity_id=pending.activity_id
                )
                with contextlib.suppress(RPCError):  # its time-out was faster
                    await handle.fail(lost)
                    released += 1
    return released
