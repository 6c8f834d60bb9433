"""Runs, through the front door."""

from tests.service import Workspace


def test_a_run_streams_calls_tools_and_completes(workspace: Workspace) -> None:
    run = workspace.start(
        {
            "thinking": "Let me write.",
            "text": "Writing.",
            "tools": [{"name": "write", "input": {"file_path": "a.txt", "content": "hello"}}],
        },
        {"tools": [{"name": "read", "input": {"file_path": "a.txt"}}]},
        {"text": "It says hello."},
        tools=["write", "read"],
    )

    frames = run.stream()

    durable = [frame.data for frame in frames if frame.event not in ("event_start", "event_delta", "done")]
    assert [event["seq"] for event in durable] == list(range(1, len(durable) + 1))
    assert frames[-1].event == "done"
    assert run.row["output"] == "It says hello."
    assert run.row["status"] == "completed"
    assert run.row["step_count"] == 3
    assert workspace.get(f"/v1/sessions/{run.row['session_id']}")["stats"]["active_seconds"] > 0
    results = [event for event in durable if event["type"] == "agent.tool_result"]
    assert "hello" in results[1]["content"][0]["text"]
