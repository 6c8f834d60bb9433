"""What stops a run, and what does not: limits, failing providers, wrong tool calls."""

from datetime import datetime
from typing import Any

import pytest

from tests.service import Workspace

READ = {"name": "read", "input": {"file_path": "none"}}
STEP = {"text": "again", "tools": [READ], "usage": {"input_tokens": 10, "output_tokens": 100}}


@pytest.mark.parametrize(
    ("limits", "stop", "steps"),
    [
        ({"max_steps": 2}, "max_steps", 2),
        ({"max_output_tokens": 250}, "max_tokens", 3),
        ({"max_steps": None, "max_output_tokens": 100}, "max_tokens", 1),
    ],
)
def test_a_limit_ends_the_run_with_its_reason(workspace: Workspace, limits: dict[str, object], stop: str, steps: int) -> None:
    run = workspace.start(*[STEP] * 6, tools=["read"], limits=limits)
    row = run.wait()
    assert (row["status"], row["stop_reason"]["type"], row["step_count"]) == ("completed", stop, steps)


def test_max_seconds_interrupts_the_call_in_flight(workspace: Workspace) -> None:
    run = workspace.start({"text": "slow " * 200, "delay_ms": 50}, limits={"max_seconds": 1})
    row = run.wait(10)
    assert row["stop_reason"]["type"] == "max_duration"


def test_a_limit_can_pause_and_resume_grants_it_anew(workspace: Workspace) -> None:
    run = workspace.start(*[STEP] * 3, {"text": "end"}, tools=["read"], limits={"max_steps": 2, "on_limit": "pause"})
    run.until(lambda row: row["status"] == "paused")
    paused = next(event for event in run.events() if event["type"] == "run.paused")
    assert paused["stop_reason"] == {"type": "max_steps"}
    run.command("resume")
    row = run.wait()
    assert (row["status"], row["output"], row["step_count"]) == ("completed", "end", 4)


def test_an_unavailable_provider_is_retried(workspace: Workspace) -> None:
    run = workspace.start({"fail": {"code": "unavailable", "message": "busy", "times": 2}, "text": "hi"})
    row = run.wait()
    assert (row["status"], row["output"]) == ("completed", "hi")
    ends = [event for event in run.events() if event["type"] == "span.model_request_end"]
    assert [(end["is_error"], end["attempt"]) for end in ends] == [(True, 1), (True, 2), (False, 3)]
    assert run.types().count("agent.message") == 1


def test_retry_after_is_honoured(workspace: Workspace) -> None:
    fail = {"code": "rate_limited", "message": "slow down", "times": 1, "retry_after_seconds": 3}
    run = workspace.start({"fail": fail, "text": "hi"})
    row = run.wait()
    starts = [event["created_at"] for event in run.events() if event["type"] == "span.model_request_start"]
    first, second = (datetime.fromisoformat(start) for start in starts)
    assert row["status"] == "completed"
    assert 2.9 < (second - first).total_seconds() < 6


def test_the_last_attempt_says_that_it_was(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.options.MODEL_ATTEMPTS", 2)
    fail = {"code": "rate_limited", "message": "slow down", "times": 9, "retry_after_seconds": 0.1}
    run = workspace.start({"fail": fail, "text": "hi"})
    row = run.wait()
    assert (row["status"], row["stop_reason"]["type"]) == ("failed", "retries_exhausted")
    problems = [event["error"]["retry_status"]["type"] for event in run.events() if event["type"] == "session.error"]
    assert problems == ["retrying", "exhausted"]
    assert run.types().count("session.status_rescheduled") == 1


def test_a_truncated_stream_is_never_taken_for_a_whole_message(workspace: Workspace) -> None:
    run = workspace.start({"text": "the whole message", "truncate_attempts": 1})
    frames = run.stream()
    messages = [frame.data for frame in frames if frame.event == "agent.message"]
    assert [message["content"][0]["text"] for message in messages] == ["the whole message"]


def test_a_rejection_fails_at_once(workspace: Workspace) -> None:
    run = workspace.start({"fail": {"code": "rejected", "message": "bad request"}})
    row = run.wait()
    assert (row["status"], row["error"], row["stop_reason"]["type"]) == (
        "failed",
        {"code": "provider_rejected", "message": "bad request", "retryable": False},
        "error",
    )


def test_wrong_tool_calls_go_back_to_the_model(workspace: Workspace) -> None:
    wrong: dict[str, Any] = {
        "tools": [
            {"name": "nonesuch", "input": {}},
            {"name": "read", "input": {"wrong": 1}},
            {"name": "read", "input": {"file_path": "../../etc/passwd"}},
        ]
    }
    run = workspace.start(wrong, {"text": "I see."}, tools=["read"])
    row = run.wait()
    results = [event for event in run.events() if event["type"] == "agent.tool_result"]
    assert (row["status"], len(results), all(result["is_error"] for result in results)) == ("completed", 3, True)
