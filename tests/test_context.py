"""What the model sees: all that was said while it fits, then what a summary stands for, through the front door.

The models are `tests.providers.strict`: they refuse what is too long, and note what a strict vendor would not take.
"""

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.attachments import Attachments
from activities.compact import CompactActivities
from activities.contexts import Contexts
from activities.recall import Recall
from activities.slots import Slots
from domain.commands import CompactInput, CompactResult
from tests.long_talks import CONFIG, FILLER, WINDOW, Models, Talk, fresh, until
from tests.providers.strict import StrictModel, strict_model, tokens
from tests.service import OVER, ServiceThread, Workspace
from tools.toolbox import Toolbox


@pytest.fixture(scope="module")
def models() -> Iterator[Models]:
    with strict_model(WINDOW) as small, strict_model(WINDOW) as silent, strict_model() as wide:
        silent.lists = False
        yield Models(small, silent, wide)


@pytest.fixture(scope="module")
def running(
    models: Models, service: ServiceThread, database_url: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceThread]:
    data = tmp_path_factory.mktemp("context")
    (data / "perdure.toml").write_text(CONFIG.format(small=models.small, silent=models.silent, wide=models.wide))
    with ServiceThread(data, database_url, temporal=service.temporal_address) as started:
        yield started


@pytest.fixture
def small(models: Models) -> Iterator[StrictModel]:
    yield from fresh(models.small)


@pytest.fixture
def silent(models: Models) -> Iterator[StrictModel]:
    yield from fresh(models.silent)


@pytest.fixture
def wide(models: Models) -> Iterator[StrictModel]:
    yield from fresh(models.wide)


@pytest.fixture
def workspace(running: ServiceThread) -> Iterator[Workspace]:
    with running.workspace() as fresh:
        yield fresh


@pytest.mark.parametrize("provider", ["claude", "small"])
def test_a_session_ten_times_longer_than_the_window(workspace: Workspace, small: StrictModel, provider: str) -> None:
    talk = Talk(workspace, provider, tuple(f"f{number}x100" for number in range(22)))

    talk.say("The first thing to know is fact-first.")
    for number in range(22):
        run = talk.say(f"Please look at f{number}x100. It is turn fact-turn{number}. {FILLER * 20}")
        assert run["output"].startswith("I see")
    recalled = talk.say("recall")

    log = talk.events()
    said = [event for event in log if event["type"] in ("user.message", "agent.message", "agent.tool_use", "agent.tool_result")]
    assert sum(tokens(event.get("content", event.get("input"))) for event in said) > 10 * WINDOW
    compactions = talk.compactions()
    assert len(compactions) > 5
    assert all(done["summary"] and done["error"] is None for done in compactions)
    assert all(done["tokens_after"] < done["tokens_before"] for done in compactions)
    # What was said first came through every summary; what the log says is all there.
    assert {"fact-first", "fact-turn0", "fact-f0x100", "fact-turn19"} <= set(recalled["output"].split())
    assert [event["seq"] for event in log] == list(range(1, len(log) + 1))
    assert len([event for event in said if event["type"] == "agent.tool_result"]) == 22
    # It was seen in time: the provider never had to say no, and what was said in a turn made no step of its own.
    assert small.rejected == 0
    assert recalled["step_count"] == 1
    usage = workspace.get(f"/v1/sessions/{talk.id}")["usage"]
    ends = [event for event in log if event["type"] == "span.model_request_end"]
    summaries = [end for end in ends if end["purpose"] == "compaction"]
    assert len(summaries) == small.summaries == len(compactions)
    assert usage["output_tokens"] == sum(end["model_usage"]["output_tokens"] for end in ends)
    assert all(end["model_usage"]["input_tokens"] > 0 for end in summaries)


def test_a_long_turn_keeps_its_question_through_compactions(workspace: Workspace, small: StrictModel) -> None:
    talk = Talk(workspace, "small", tuple(f"g{number}x60" for number in range(8)))
    looks = " ".join(f"Then look at g{number}x60." for number in range(8))
    small.in_turn = True

    run = talk.say(f"My question is fact-question. {looks}")

    assert len(talk.events("agent.tool_result")) == 8
    assert len(talk.compactions()) >= 2
    last = json.dumps(small.bodies[-1]["messages"])
    assert "My question is fact-question." in last
    assert run["output"].startswith("I see")


def test_a_result_beyond_the_window_is_shortened_for_the_model(workspace: Workspace, silent: StrictModel) -> None:
    talk = Talk(workspace, "unknown", ("hugex600",))

    run = talk.say("Please look at hugex600.")

    assert run["output"].startswith("I see")
    (result,) = talk.events("agent.tool_result")
    assert tokens(result["content"]) > 2 * WINDOW
    assert silent.rejected >= 1
    assert talk.compactions()[-1]["result_chars"] < WINDOW * 4
    assert silent.summaries == 0, "there was nothing to summarise"
    assert "left out" in json.dumps(silent.bodies[-1]["messages"])


def test_a_provider_that_says_no_is_asked_again_with_less(workspace: Workspace, silent: StrictModel) -> None:
    talk = Talk(workspace, "unknown")
    talk.say("Remember fact-early.")
    for _ in range(10):
        talk.say(FILLER * 30)

    recalled = talk.say("recall")

    assert silent.rejected >= 1
    assert talk.compactions()
    assert "fact-early" in recalled["output"]
    assert "session.error" not in [event["type"] for event in talk.events()]


@pytest.mark.parametrize("broken", ["400", "empty", "500"])
def test_a_summary_that_fails_does_not_lose_the_turn(workspace: Workspace, small: StrictModel, broken: str) -> None:
    talk = Talk(workspace, "small")
    small.broken = broken

    for number in range(6):
        talk.say(f"Turn fact-turn{number}. {FILLER * 50}")
    small.broken = None
    recalled = talk.say("recall")

    # It goes on while there is room, and then without what is older.
    assert small.rejected == 0
    assert "fact-turn5" in recalled["output"]
    assert "fact-turn0" not in recalled["output"]
    left_out = [done for done in talk.compactions() if done["summary"] is None]
    assert left_out
    assert all(done["error"]["code"] for done in left_out)
    assert "left out here" in json.dumps(small.bodies[-1]["messages"][:2])


def test_a_server_whose_list_of_models_is_none_answers_long_conversations_too(workspace: Workspace, wide: StrictModel) -> None:
    assert Talk(workspace, "bare").say(f"fact-long {FILLER * 200} recall")["output"] == "fact-long"
    assert "wide:strict" in [model["id"] for model in workspace.get("/v1/models")["data"]]


def test_a_message_beyond_the_window_fails_its_turn_and_no_other(workspace: Workspace, silent: StrictModel) -> None:
    talk = Talk(workspace, "unknown")
    talk.say("Remember fact-early.")

    failed = workspace.get(f"/v1/runs/{talk.send(FILLER * 400)}/wait", timeout_seconds=60)
    recalled = talk.say("recall")

    assert (failed["status"], failed["error"]["code"]) == ("failed", "context_exceeded")
    assert "prompt is too long" in failed["error"]["message"]
    assert "fact-early" in recalled["output"]


def test_the_agent_says_how_much_it_is_given(workspace: Workspace, wide: StrictModel) -> None:
    talk = Talk(workspace, "wide", context={"max_tokens": 2_000, "compact_at": 0.5})

    for _ in range(6):
        talk.say(FILLER * 20)

    assert talk.compactions()
    assert all(sum(map(tokens, body["messages"])) < 2_000 for body in wide.bodies)


@pytest.mark.parametrize("command", ["cancel", "pause"])
def test_a_compaction_is_stopped_within_a_second(workspace: Workspace, small: StrictModel, command: str) -> None:
    talk = Talk(workspace, "small")
    talk.say(f"fact-one {FILLER * 100}")
    talk.say(f"fact-two {FILLER * 60}")
    small.asked.clear()
    small.broken = "held"
    run = talk.send(f"fact-three {FILLER * 60}")
    assert small.asked.wait(20)

    began = time.monotonic()
    workspace.post(f"/v1/runs/{run}/{command}", {} if command == "cancel" else {"mode": "now"}, expect=202)
    wanted = "cancelled" if command == "cancel" else "paused"
    until(lambda: workspace.get(f"/v1/runs/{run}")["status"] == wanted)

    assert time.monotonic() - began < 5  # of a second; the rest is for machines that are busy
    assert talk.compactions() == []
    small.release.set()
    small.broken = None
    if command == "pause":
        workspace.post(f"/v1/runs/{run}/resume", expect=202)
        assert workspace.get(f"/v1/runs/{run}/wait", timeout_seconds=30)["status"] == "completed"
    assert "fact-one" in talk.say("recall")["output"]
    assert [event["type"] for event in talk.events() if event["type"] in OVER].count("run.cancelled") == (command == "cancel")


def test_nobody_can_write_a_summary_and_there_is_room_still(
    running: ServiceThread, workspace: Workspace, small: StrictModel
) -> None:
    """Every worker that was to ask for it was lost before it did."""
    talk = Talk(workspace, "small")
    talk.say(f"fact-one {FILLER * 100}")
    talk.say(f"fact-two {FILLER * 60}")
    small.broken = "held"
    run = talk.send(f"fact-three {FILLER * 60}")
    assert small.asked.wait(20)
    workspace.post(f"/v1/runs/{run}/pause", {"mode": "now"}, expect=202)
    until(lambda: workspace.get(f"/v1/runs/{run}")["status"] == "paused")
    call = CompactInput(run_id=run, session_id=talk.id, call=f"{run}.1/lost", provider="small", summarise=False)

    assert running.call(compact(running, call)) == CompactResult()

    small.release.set()
    small.broken = None
    workspace.post(f"/v1/runs/{run}/resume", expect=202)
    assert workspace.get(f"/v1/runs/{run}/wait", timeout_seconds=30)["status"] == "completed"


async def compact(running: ServiceThread, call: CompactInput) -> CompactResult:
    parts = running.parts
    toolbox = Toolbox((), parts.mcp)
    contexts = Contexts(parts.database, Recall(), toolbox, parts.providers, Attachments(parts.database, parts.files))
    activities = CompactActivities(parts.database, parts.live, parts.providers, contexts, {"small": Slots(1)})
    return await ActivityEnvironment().run(activities.compact, call)


@pytest.mark.parametrize("provider", ["wide", "wideopenai"])
def test_every_request_begins_with_the_one_before(workspace: Workspace, wide: StrictModel, provider: str) -> None:
    talk = Talk(workspace, provider, ("ax3", "bx3"))

    for text in ("Hello.", "Please look at ax3.", "And what else?", "Please look at bx3. Then look at ax3.", "Thanks."):
        talk.say(text)

    assert len(wide.bodies) == 7
    for shorter, longer in pairwise(wide.bodies):
        old, new = shorter.pop("messages"), longer["messages"]
        assert json.dumps(new[: len(old)]) == json.dumps(old), "byte for byte"
        assert list(shorter) == [name for name in longer if name != "messages"]
        assert json.dumps(shorter) == json.dumps({name: longer[name] for name in shorter})
    read = [end["model_usage"]["cache_read_input_tokens"] for end in talk.events("span.model_request_end")]
    assert read[0] == 0
    assert all(later > earlier for earlier, later in pairwise(read))
    session = workspace.get(f"/v1/sessions/{talk.id}")
    assert session["usage"]["cache_read_input_tokens"] == sum(read)


def test_an_image_goes_along_until_its_file_is_deleted(workspace: Workspace, wide: StrictModel) -> None:
    talk = Talk(workspace, "wide")
    source = {"type": "base64", "media_type": "image/gif", "data": "R0lGODlhAQABAAAAACw="}
    for _ in range(2):
        talk.say([{"type": "text", "text": "See."}, {"type": "image", "source": source}])
    first, second = (body["messages"] for body in wide.bodies)
    sent = [{"type": "text", "text": "See."}, {"type": "image", "source": source}]
    assert second[0] == first[0] == {"role": "user", "content": sent}
    (file, _) = workspace.get("/v1/files", order="asc")["data"]
    workspace.http.delete(f"/v1/files/{file['id']}").raise_for_status()

    talk.say("And now?")

    now = wide.bodies[-1]["messages"]
    assert now[0]["content"][1] == {"type": "text", "text": f"[image: the file {file['id']} was deleted]"}
    assert now[2] == second[2]


def test_a_program_takes_text_only_documents_of_it_too(workspace: Workspace) -> None:
    session = workspace.post("/v1/sessions", {"agent": workspace.agent(model="command:default")["id"]})["id"]
    note = {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "owls"}}
    image = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}

    refused = workspace.post(f"/v1/sessions/{session}/messages", {"content": [image]}, expect=422)
    taken = workspace.post(f"/v1/sessions/{session}/messages", {"content": [note]}, expect=201)

    assert "command:default takes no images" in refused["detail"]
    assert "owls" in workspace.get(f"/v1/runs/{taken['run']['id']}/wait", timeout_seconds=30)["output"]


def test_a_subagents_own_thread_is_compacted(workspace: Workspace, small: StrictModel) -> None:
    worker = workspace.agent(name=f"worker-{time.monotonic_ns()}", model="small:strict", tools=["read"])
    lead = workspace.agent(multiagent={"agents": [{"type": "agent", "id": worker["id"]}]})
    task = f"fact-task {FILLER * 120} " + " ".join(f"Then look at s{number}x60." for number in range(4))
    small.in_turn = True
    call = {"name": "delegate", "input": {"agent": worker["name"], "task": task}}
    resources = [
        {
            "type": "file",
            "file_id": workspace.http.post("/v1/files", files={"file": (name, (FILLER * 60).encode(), "text/plain")}).json()[
                "id"
            ],
            "mount_path": name,
        }
        for name in (f"s{number}x60" for number in range(4))
    ]
    run = workspace.start({"tools": [call]}, {"text": "end"}, agent=lead["id"], resources=resources)
    row = run.wait(60)

    assert row["status"] == "completed"
    log = workspace.get(f"/v1/sessions/{row['session_id']}/events", limit=1000)["data"]
    done = [event for event in log if event["type"] == "agent.thread_context_compacted"]
    assert done
    assert all(event["session_thread_id"] for event in done)
    assert "fact-task" in json.dumps(small.bodies[-1]["messages"])


def test_the_offline_model_goes_on_after_a_compaction(workspace: Workspace, tmp_path: Path) -> None:
    """The step of a script that is next follows from the request alone, also where its answers are gone."""
    agent = workspace.agent(tools=["read"], context={"max_tokens": 1_500})
    steps = [
        {"text": f"step {number} " + FILLER * 8, "tools": [{"name": "read", "input": {"file_path": "x"}}]}
        for number in range(12)
    ]

    run = workspace.start(*steps, {"text": "the end"}, agent=agent["id"])

    assert run.wait(60)["output"] == "the end"
    assert "agent.thread_context_compacted" in run.types()
