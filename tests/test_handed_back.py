"""Workers that are restarted faster than a model can answer do not make a run call it for ever."""

from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Worker

from domain.agents import Limits
from domain.commands import CompleteInput, CompleteResult, FinishInput, FinishResult, RunStart, Tries
from tests.service import ServiceThread
from workflows.agent_run import AgentRun
from workflows.options import MODEL_HANDED_BACK
from workflows.runner import workflow_runner

pytestmark = pytest.mark.single_database


class Restless:
    """Activities of a worker that is always just about to end."""

    def __init__(self) -> None:
        self.calls: list[CompleteInput] = []
        self.outcomes: list[FinishInput] = []

    @activity.defn(name="model.complete")
    async def complete(self, call: CompleteInput) -> CompleteResult:
        self.calls.append(call)
        times = len(self.calls)
        return CompleteResult(stop="interrupted", handed_back=Tries(begun=times, failed=min(times, 3), handed_back=times))

    @activity.defn(name="records.finish")
    async def finish(self, outcome: FinishInput) -> FinishResult:
        self.outcomes.append(outcome)
        return FinishResult(finished=True)


async def test_a_call_is_not_handed_back_for_ever(service: ServiceThread) -> None:
    restless, queue = Restless(), f"test-{uuid4().hex}"
    client = await Client.connect(service.temporal_address, data_converter=pydantic_data_converter)
    start = RunStart(
        run_id=queue, session_id="s", workspace_id="w", agent="a", model="demo:script", limits=Limits(on_limit="end")
    )
    async with Worker(
        client,
        task_queue=queue,
        workflows=[AgentRun],
        activities=[restless.complete, restless.finish],
        workflow_runner=workflow_runner(),
    ):
        result = await client.execute_workflow(AgentRun.run, start, id=queue, task_queue=queue)

    assert (result.status, len(restless.calls)) == ("failed", MODEL_HANDED_BACK)
    assert {call.call for call in restless.calls} == {f"{queue}.1/1"}, "the same call under the same key"
    assert [call.before and call.before.begun for call in restless.calls] == [None, *range(1, MODEL_HANDED_BACK)]
    (outcome,) = restless.outcomes
    assert (outcome.error_code, outcome.retryable) == ("worker_lost", True)
