"""What Temporal knows of an execution of a run's workflow."""

from temporalio.client import Client

from domain.commands import RunStart


async def attempt_of(client: Client, workflow_id: str, temporal_run_id: str | None = None) -> int:
    """Which attempt of the run an execution is, the newest one by default: its input says it. Raises RPCError."""
    history = client.get_workflow_handle(workflow_id, run_id=temporal_run_id).fetch_history_events(page_size=1)
    started = (await anext(history)).workflow_execution_started_event_attributes
    (start,) = await client.data_converter.decode(started.input.payloads, [RunStart])
    return start.attempt
