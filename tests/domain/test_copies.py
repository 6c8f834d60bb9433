"""Which events of a log a copy has, and what becomes of the ids in them."""

from domain.copies import Outline, Renaming, open_turn, quiet_end, select
from domain.multiagent import thread_of

START, END, IDLE = "span.model_request_start", "span.model_request_end", "session.status_idle"


def outline(*events: tuple[str, str | None], subagents: tuple[str, ...] = ()) -> list[Outline]:
    return [Outline(f"sevt_{seq}", seq, type, run, run in subagents) for seq, (type, run) in enumerate(events, 1)]


def dropped(events: list[Outline]) -> list[int]:
    return sorted(int(id.removeprefix("sevt_")) for id in select(events).dropped)


def test_what_was_still_queued_is_left_out() -> None:
    first = [("user.message", "run_1"), ("run.queued", "run_1"), (START, "run_1")]
    waits = [("user.message", "run_2"), ("run.queued", "run_2")]

    assert dropped(outline(*first[:2])) == [1, 2]
    assert dropped(outline(*first)) == []
    assert dropped(outline(*first, *waits)) == [4, 5]
    late = ("user.message", "run_1")  # to the run at work, which had not read it yet
    assert dropped(outline(*first, late)) == [4]
    assert dropped(outline(*first, late, (START, "run_1"))) == []
    assert dropped(outline(*first, late, ("run.failed", "run_1"))) == []  # the next turn reads it
    assert dropped(outline(*first, *waits, ("run.cancelled", "run_2"))) == []  # withdrawn, which is history
    assert dropped(outline(*first, *waits, ("run.cancelled", "run_2"), ("run.queued", "run_2"))) == [4, 5, 6, 7]
    assert dropped(outline(*first, ("run.queued", "run_3"), subagents=("run_3",))) == []


def test_what_was_handed_on_goes_with_the_turn_that_reads_it() -> None:
    late = [("user.message", "run_1"), (START, "run_1"), ("user.message", "run_1"), ("run.cancelled", "run_1")]
    events = outline(*late, ("run.queued", "run_2"), ("session.steer", "run_2"), (START, "run_2"))
    events[5] = events[5]._replace(deferred="sevt_3")
    assert dropped(events[:5]) == [5]
    assert dropped(events[:6]) == [3, 5, 6]
    assert dropped(events) == []


def test_a_system_message_goes_with_what_it_came_with() -> None:
    first = [("user.message", "run_1"), ("system.message", "run_1"), (START, "run_1")]
    answered = [("user.custom_tool_result", "run_1"), ("system.message", "run_1")]

    assert dropped(outline(*first[:2])) == [1, 2]
    assert dropped(outline(*first)) == []
    assert dropped(outline(*first, *first[:2])) == [4, 5]
    assert dropped(outline(*first, *answered)) == []  # nobody has read it, but the result is there
    assert dropped(outline(*first, *answered, *first[:2])) == [6, 7]
    assert dropped(outline(*first, *first[:2], ("run.failed", "run_1"))) == []


def test_reasoning_without_what_it_led_to() -> None:
    begun = [("user.message", "run_1"), (START, "run_1")]
    thought, said = ("agent.thinking", "run_1"), ("agent.tool_use", "run_1")

    assert select(outline(*begun, thought, thought)).half_thoughts == {"sevt_3", "sevt_4"}
    assert select(outline(*begun, thought, said)).half_thoughts == frozenset()
    assert select(outline(*begun, thought, ("run.completed", "run_1"))).half_thoughts == frozenset()


def test_the_quiet_end_of_a_run() -> None:
    begun = outline(("user.message", "run_1"), (START, "run_1"), ("agent.message", "run_1"))
    assert open_turn(begun) == "run_1"
    ending = outline((END, "run_1"), (IDLE, "run_1"), ("run.completed", "run_1"), ("run.queued", "run_1"))
    assert quiet_end(ending) == ending[:3]
    assert quiet_end(outline((END, "run_1"), ("agent.tool_result", "run_1"), ("run.completed", "run_1"))) == []
    assert quiet_end(ending[:2]) == []  # it is not over


def test_ids_wherever_they_stand() -> None:
    events = outline(("user.message", "run_1"), ("user.message", "run_2"), (START, "run_1"), ("agent.tool_use", "run_1"))
    selection = select(events)
    renaming = Renaming(("sesn_old", "sesn_new"), events, selection)
    assert [renaming.next_seq(event.seq) for event in events if event.id not in selection.dropped] == [1, 2, 3]
    use, thread = "sevt_4", thread_of("run_1")

    new = renaming.members(
        {
            "tool_use_id": use,
            "stop_reason": {"type": "requires_action", "event_ids": [use]},
            "from_session_thread_id": thread_of("sesn_old"),
            "session_thread_id": thread,
            "artifact_id": "artf_1",
            "through_seq": 3,
            "input": {"tool_use_id": use},
            "content": [{"type": "text", "text": use}, {"type": "image", "file_id": "file_1"}],
            "client_event_id": use,
        }
    )

    assert new["tool_use_id"] == renaming[use] != use
    assert new["stop_reason"] == {"type": "requires_action", "event_ids": [renaming[use]]}
    assert new["from_session_thread_id"] == thread_of("sesn_new")
    assert new["session_thread_id"] == thread_of(renaming["run_1"])
    assert renaming.members({"artifact_id": "artf_1"})["artifact_id"] == new["artifact_id"] != "artf_1"
    assert new["through_seq"] == 2
    # What somebody said, whatever it looks like.
    assert new["input"] == {"tool_use_id": use}
    assert new["content"] == [{"type": "text", "text": use}, {"type": "image", "file_id": "file_1"}]
    assert new["client_event_id"] == use
    assert renaming.names_dropped({"event_id": "sevt_2"})
    assert not renaming.names_dropped({"event_id": use, "client_event_id": "sevt_2"})
