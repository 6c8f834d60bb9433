"""Recorded histories replay on today's workflow code, and a run continues as new in its middle."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import Client

from tests.replay.fingerprint import HISTORIES, edited, replay
from tests.service import ServiceThread

STEP = {"tools": [{"name": "read", "input": {"file_path": "none"}}]}

pytestmark = pytest.mark.single_database


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    """A failure here means that runs in flight would break at the next deployment: use `workflow.patched`.

    `cancelled_as_it_ended` has a call's result and the run's cancellation in one workflow task; the SDK's flag 1 was added
    to it by hand, without which the SDK replays it in its older, harmless way.
    """
    try:
        await replay(path)
    except workflow.NondeterminismError as error:
        error.add_note(f"edited since the fingerprints were recorded: {', '.join(edited()) or 'nothing'}")
        raise


def test_there_is_a_history_of_every_kind_of_run() -> None:
    assert {path.stem for path in HISTORIES.glob("*.json")} >= {
        "steps",
        "paused",
        "cancelled",
        "asked",
        "failed",
        "limited",
        "handed_back",
        "delegated",
        "titled",
    }


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceThread]:
    """A service whose Temporal suggests to continue as new very early."""
    dynamic = ("limit.historyCount.suggestContinueAsNew=40",)
    with ServiceThread(tmp_path_factory.mktemp("impatient"), None, dynamic=dynamic) as running:
        yield running


def test_a_run_continues_as_new_in_its_middle(impatient: ServiceThread) -> None:
    with impatient.workspace() as workspace:
        run = workspace.start(*[STEP] * 12, {"text": "end"}, tools=["read"], limits={"max_steps": 13})
        row = run.wait(60)

        executions = impatient.call(_executions(impatient, run.id))
        assert (row["status"], row["output"], row["step_count"]) == ("completed", "end", 13)
        assert executions >= 3
        seqs = [event["seq"] for event in run.events()]
        assert seqs == list(range(1, len(seqs) + 1))


def test_limits_count_across_a_continue_as_new(impatient: ServiceThread) -> None:
    with impatient.workspace() as workspace:
        run = workspace.start(*[STEP] * 20, tools=["read"], limits={"max_steps": 10})
        row = run.wait(60)
        assert (row["stop_reason"]["type"], row["step_count"]) == ("max_steps", 10)
        assert impatient.call(_executions(impatient, run.id)) >= 2


def test_a_run_that_continues_as_new_as_it_is_resumed_says_so(impatient: ServiceThread) -> None:
    with impatient.workspace() as workspace:
        limits = {"max_steps": 1, "on_limit": "pause"}
        run = workspace.start(*[STEP] * 7, {"text": "end"}, tools=["read"], limits=limits)
        for pauses in range(1, 8):
            run.until(lambda _, pauses=pauses: run.types().count("run.paused") == pauses)
            run.command("resume")
        row = run.wait(60)
        assert (row["status"], run.types().count("run.resumed")) == ("completed", 7)
        assert impatient.call(_executions(impatient, run.id)) >= 3


async def _executions(service: ServiceThread, run_id: str) -> int:
    """How many Temporal executions the run's chain has."""
    client = await Client.connect(service.temporal_address)
    count = 1
    history = await client.get_workflow_handle(run_id).fetch_history()
    while continued := history.events[0].workflow_execution_started_event_attributes.continued_execution_run_id:
        count += 1
        history = await client.get_workflow_handle(run_id, run_id=continued).fetch_history()
    return count
