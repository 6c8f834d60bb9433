"""Calls that are handed back: by workers that are restarted all the time, and by those that have no slot for them."""

from pathlib import Path
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from domain.agents import Limits
from domain.commands import SLOT_SECONDS, CompleteInput, CompleteResult, FinishInput, FinishResult, RunStart, Tries
from tests.service import ServiceThread
from workflows.agent_run import AgentRun
from workflows.options import MODEL_HANDED_BACK, model_call
from workflows.payloads import data_converter
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
    client = await Client.connect(service.temporal_address, data_converter=data_converter)
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


def test_waiting_for_a_slot_uses_up_no_attempt(service: ServiceThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long: while the provider's only slot is taken, the call is handed back again and again."""
    (tmp_path / "perdure.toml").write_text('[providers.narrow]\nkind = "scripted"\nconcurrency = 1\n')
    with ServiceThread(tmp_path, None, temporal=service.temporal_address) as narrow, narrow.workspace() as workspace:
        agent = workspace.agent(model="narrow:script")["id"]
        first = workspace.start({"text": "word " * 4000, "delay_ms": 50}, agent=agent)
        first.until(lambda row: row["status"] == "running")
        monkeypatch.setattr("activities.streaming.SLOT_SECONDS", 0.2)
        monkeypatch.setattr("workflows.options.MODEL_ATTEMPTS", 2)
        monkeypatch.setattr("workflows.options.MODEL_HANDED_BACK", 2)
        second = workspace.start({"text": "at last"}, agent=agent)
        second.until(lambda _: narrow.call(calls(narrow, second.id)) > 3)
        assert second.row["status"] == "queued"
        first.command("cancel")
        assert second.wait()["output"] == "at last"
        assert [event["attempt"] for event in second.events() if event["type"] == "span.model_request_start"] == [1]


async def calls(service: ServiceThread, run_id: str) -> int:
    """How often the run's model call was handed to a worker."""
    history = await service.temporal.get_workflow_handle(run_id).fetch_history()
    return sum(event.HasField("activity_task_scheduled_event_attributes") for event in history.events)


def test_the_time_in_which_a_call_waits_is_not_its_own() -> None:
    whole = model_call(None, timeout_seconds=900, step=1).get("start_to_close_timeout")
    assert whole is not None
    assert whole.total_seconds() > SLOT_SECONDS + 900
