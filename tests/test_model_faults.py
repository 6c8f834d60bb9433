"""Every fault of a model server, end to end: a real agent on a server that misbehaves, for both vendors' packages.

All runs of a vendor go at once, for most of them wait a second before their second attempt.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.ports import free_port
from tests.providers.faulty import WHOLE, FaultyServer, faulty_thread
from tests.service import OVER, Frame, RunView, ServiceThread, Workspace, parse

KEY = "sk-test-very-secret"
VENDORS = ("claude", "gpt")


@dataclass(frozen=True)
class Fault:
    model: str
    """What the server is told to do at the first call."""
    code: str
    """Of the attempt that met it."""
    said: str
    """A part of the message."""
    retried: bool = True
    begun: bool = True
    """Whether text had come by then."""
    pause: float = 1
    """Seconds at least before the second attempt."""


FAULTS = (
    Fault("truncated", "provider_truncated", "without a stop reason"),
    Fault("unstopped", "provider_truncated", "without a stop reason"),
    Fault("half-arguments", "provider_truncated", "without a stop reason"),
    Fault("disconnect", "provider_truncated", "broke the connection in mid-answer"),
    Fault("gzip-cut", "provider_truncated", "without a stop reason"),
    Fault("gzip-bad", "provider_truncated", "in mid-answer (DecodingError)", begun=False),
    Fault("empty", "provider_truncated", "without a stop reason", begun=False),
    Fault("malformed", "provider_unavailable", "no valid answer"),
    Fault("notutf8", "provider_unavailable", "no valid answer"),
    Fault("wrong-shape", "provider_unavailable", "no valid answer"),
    Fault("page", "provider_unavailable", "text/html and not with a stream: is base_url right?", begun=False),
    Fault("error-event", "provider_unavailable", "overloaded: ***"),
    Fault("hangup", "provider_unavailable", "No connection", begun=False),
    Fault("stall", "provider_stalled", "silent for longer than idle_timeout_seconds"),
    Fault("headers", "provider_stalled", "silent for longer than idle_timeout_seconds", begun=False),
    Fault("silent", "provider_stalled", "silent for longer than idle_timeout_seconds", begun=False),
    Fault("drip", "provider_stalled", "time allowed for one call"),
    Fault("429-second", "provider_rate_limited", "HTTP 429", begun=False),
    Fault("429-soon", "provider_rate_limited", "HTTP 429", begun=False, pause=0),
    Fault("429-nonsense", "provider_rate_limited", "HTTP 429", begun=False),
    Fault("500", "provider_unavailable", "HTTP 500", begun=False),
    Fault("529", "provider_unavailable", "HTTP 529", begun=False),
    Fault("400", "provider_rejected", "HTTP 400", retried=False, begun=False),
    Fault("401", "provider_auth", "_KEY to a valid key", retried=False, begun=False),
    Fault("403", "provider_auth", "HTTP 403", retried=False, begun=False),
    Fault("404", "provider_rejected", "HTTP 404", retried=False, begun=False),
)


@pytest.fixture(scope="module")
def faulty() -> Iterator[FaultyServer]:
    with faulty_thread() as server:
        yield server


@pytest.fixture(scope="module")
def running(
    faulty: FaultyServer, service: ServiceThread, database_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceThread]:
    """A service whose providers are the faulty server, on the Temporal of the others."""
    data = tmp_path_factory.mktemp("faults")
    limits = "concurrency = 100\nidle_timeout_seconds = 1.5\ntimeout_seconds = 6\n"
    ways = {"": f"{faulty.url}/once", "-always": f"{faulty.url}/always", "-nobody": f"http://127.0.0.1:{free_port()}"}
    tables: list[str] = []
    for way, base in ways.items():
        for name, kind, url in (("claude", "anthropic", base), ("gpt", "openai_compatible", f"{base}/v1")):
            provider = f'kind = "{kind}"\nbase_url = "{url}"\napi_key_env = "FAULTS_KEY"'
            tables.append(f"[providers.{name}{way}]\n{provider}\n{limits}")
    (data / "perdure.toml").write_text("\n".join(tables))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FAULTS_KEY", KEY)
        with ServiceThread(data, database_url, temporal=service.temporal_address) as started:
            yield started


@pytest.fixture
def workspace(running: ServiceThread) -> Iterator[Workspace]:
    with running.workspace() as fresh:
        yield fresh


@dataclass(frozen=True)
class Outcome:
    run: RunView
    row: dict[str, Any]
    events: list[dict[str, Any]]
    frames: list[Frame]
    history: str

    def of(self, type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == type]


def begin(workspace: Workspace, model: str) -> RunView:
    agent = workspace.agent(model=model, tools=["read"])["id"]
    return workspace.start(text="Tell me.", agent=agent)


def watched(service: ServiceThread, workspace: Workspace, model: str) -> Outcome:
    """A run's outcome, and everything that a viewer saw who was there before it."""
    agent = workspace.agent(model=model, tools=["read"])["id"]
    session = workspace.post("/v1/sessions", {"agent": agent})["id"]
    frames: list[Frame] = []
    with workspace.http.stream("GET", f"/v1/sessions/{session}/events/stream") as response:
        assert response.status_code == 200
        sent = workspace.post(f"/v1/sessions/{session}/messages", {"content": "Tell me."})
        for frame in parse(response.iter_lines()):
            frames.append(frame)
            if frame.event in OVER:
                break
    run = RunView(workspace, sent["run"]["id"])
    return Outcome(run, run.wait(), run.events(), frames, service.call(history(service, run.id)))


async def history(service: ServiceThread, run_id: str) -> str:
    return (await service.temporal.get_workflow_handle(run_id).fetch_history()).to_json()


def check_the_viewer(outcome: Outcome) -> None:
    """No text twice: what was begun is either the beginning of the one whole message, or void."""
    texts: dict[str, str] = {}
    for frame in outcome.frames:
        if frame.event == "event_start":
            assert frame.data["event"]["id"] not in texts, "opened twice"
            texts[frame.data["event"]["id"]] = ""
        elif frame.event == "event_delta":
            texts[frame.data["event_id"]] += frame.data["delta"]["content"]["text"]
    told = [frame.data for frame in outcome.frames if frame.event == "agent.message"]
    whole = {event["id"]: event["content"][0]["text"] for event in told}
    assert list(whole.values()) == ([WHOLE] if outcome.row["status"] == "completed" else [])
    for event_id, text in texts.items():
        assert whole.get(event_id, text).startswith(text)
        assert event_id in whole or WHOLE.startswith(text)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_fault_is_retried_or_refused_and_never_taken_for_an_answer(
    running: ServiceThread,
    workspace: Workspace,
    vendor: str,
    subtests: pytest.Subtests,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("looked_at", len(FAULTS))
    with ThreadPoolExecutor(len(FAULTS) // 2) as threads:  # all at once, a busy machine would connect too late for some
        going = [threads.submit(watched, running, workspace, f"{vendor}:{fault.model}") for fault in FAULTS]
        outcomes = [future.result() for future in going]
    for fault, outcome in zip(FAULTS, outcomes, strict=True):
        with subtests.test(fault.model):
            check(fault, outcome)


def check(fault: Fault, outcome: Outcome) -> None:
    row, ends = outcome.row, outcome.of("span.model_request_end")
    failed = ends[0]["error"]
    assert (failed["code"], failed["retryable"]) == (fault.code, fault.retried)
    assert fault.said in failed["message"]
    (problem,) = outcome.of("session.error")
    assert (problem["error"]["code"], problem["error"]["message"]) == (failed["code"], failed["message"])
    assert problem["error"]["retry_status"]["type"] == ("retrying" if fault.retried else "terminal")

    starts = outcome.of("span.model_request_start")
    assert [end["model_request_start_id"] for end in ends] == [start["id"] for start in starts]
    if fault.retried:
        assert (row["status"], row["output"], row["error"]) == ("completed", WHOLE, None)
        assert [(end["attempt"], end["is_error"]) for end in ends] == [(1, True), (2, False)]
        waited = datetime.fromisoformat(starts[1]["created_at"]) - datetime.fromisoformat(ends[0]["created_at"])
        assert waited.total_seconds() > fault.pause - 0.05
    else:
        assert (row["status"], row["output"], row["stop_reason"]["type"]) == ("failed", None, "error")
        assert row["error"] == failed
        assert len(ends) == 1
    # What was lost is not counted, for nobody knows what it cost.
    assert row["usage"]["output_tokens"] == (7 if fault.retried else 0)
    assert row["step_count"] == (1 if fault.retried else 0)
    assert not outcome.of("agent.tool_use"), "half of a tool use was taken for one"

    check_the_viewer(outcome)
    if fault.begun:
        void = {f.data["event"]["id"] for f in outcome.frames if f.event == "event_start"} - {e["id"] for e in outcome.events}
        assert void, "the viewer never saw what the fault cut off: the test saw less than it should"
    assert KEY not in str(outcome.events) + str(outcome.frames) + str(outcome.row) + outcome.history


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_pause_of_a_day_is_an_hour_and_can_be_cancelled(running: ServiceThread, workspace: Workspace, vendor: str) -> None:
    runs = [begin(workspace, f"{vendor}-always:{model}") for model in ("429-day", "429-absurd", "429-date")]
    for run in runs:
        run.until(lambda _, run=run: "session.status_rescheduled" in run.types())
        delay = 0.0
        deadline = time.monotonic() + 10
        while not delay and time.monotonic() < deadline:
            delay = running.call(next_attempt_in(running, run.id))
        assert 3500 < delay <= 3600
        run.command("cancel")
        assert run.wait(5)["status"] == "cancelled"


async def next_attempt_in(service: ServiceThread, run_id: str) -> float:
    """Seconds until Temporal tries the run's activity again; 0 while it does not say."""
    described = await service.temporal.get_workflow_handle(run_id).describe()
    for pending in described.raw_description.pending_activities:
        if pending.HasField("next_attempt_schedule_time"):
            return (pending.next_attempt_schedule_time.ToDatetime(UTC) - datetime.now(UTC)).total_seconds()
    return 0.0


@pytest.mark.parametrize("vendor", VENDORS)
def test_nobody_there_is_tried_again(workspace: Workspace, vendor: str) -> None:
    run = begin(workspace, f"{vendor}-nobody:any")
    run.until(lambda _: run.types().count("span.model_request_end") == 2)
    run.command("cancel")
    row = run.wait(5)

    assert (row["status"], row["output"]) == ("cancelled", None)
    errors = [event["error"] for event in run.events() if event["type"] == "span.model_request_end"]
    assert {error["code"] for error in errors} == {"provider_unavailable"}
    assert all(error["message"].startswith("No connection to 127.0.0.1:") for error in errors)
