"""What a worker remembers of conversations: as much as it has room for, and no more."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from activities.recall import Recall
from domain.completions import Message
from domain.events import Event
from storage.journal import read
from tests.service import ServiceThread, Workspace
from tests.test_busy_sessions import READ, Talk


def test_its_memory_is_bounded_by_what_was_said(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = [Talk(workspace, {"model": "demo:echo"}) for _ in range(2)]
    for talk in talks:
        talk.run(text="word " * 4_000).wait()  # said twice, which makes about 10,000 tokens
    recall = Recall()
    begun: list[str] = []

    async def noted(*place: Any, after: int, **wanted: Any) -> Any:
        if not after:
            begun.append(place[1])
        return await read(*place, after=after, **wanted)

    async def recalled(*sessions: Talk) -> list[int]:
        found = [recall.transcript(service.parts.database, talk.id) for talk in sessions]
        return [transcript.tokens.estimated for transcript in await asyncio.gather(*found)]

    monkeypatch.setattr("activities.recall.read", noted)
    monkeypatch.setattr("activities.recall.MAX_TOKENS", 30_000)
    one, other = talks
    (tokens,) = service.call(recalled(one))
    assert tokens > 9_000
    service.call(recalled(one, one, one))
    service.call(recalled(one, other))
    service.call(recalled(one, other))
    assert begun.count(other.id) == 1, "both fit, however often one was read by several at once"

    monkeypatch.setattr("activities.recall.MAX_TOKENS", 15_000)
    begun.clear()
    for _ in range(2):
        service.call(recalled(one))
        service.call(recalled(other))
    assert begun == [other.id, one.id, other.id], "one of them alone"


@pytest.mark.parametrize("heard", ["all", "some", "late"])
def test_what_this_process_has_appended_is_known_without_a_look_and_what_others_have_is_read(
    service: ServiceThread, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, heard: str
) -> None:
    database, recall, looks, batches = service.parts.database, Recall(), 0, 0
    held: list[tuple[str, Sequence[Event]]] = []
    talk = Talk(workspace)

    async def noted(*place: Any, **wanted: Any) -> Any:
        nonlocal looks
        looks += 1
        return await read(*place, **wanted)

    def hear(session: str, events: Sequence[Event]) -> None:
        nonlocal batches
        batches += session == talk.id
        match heard:
            case "some" if batches % 3 == 0:  # as if another process had appended it
                return
            case "late" if not held:  # told in another order than that of their commits
                held.append((session, events))
                return
            case _:
                recall.tell(session, events)
        for before in held:
            recall.tell(*before)
        held.clear()

    async def known(up_to: int) -> tuple[Message, ...]:
        return (await recall.transcript(database, talk.id, up_to=up_to)).messages()

    async def logged() -> tuple[Message, ...]:
        return (await Recall().transcript(database, talk.id)).messages()

    talk.run({"text": "First."}).wait()
    service.call(known(talk.events()[-1]["seq"]))
    database.announce.append(hear)
    try:
        for step in range(4):
            talk.run({**READ, "text": f"Looking {step}."}, {"text": f"Done {step}."}).wait()
            last = talk.events()[-1]["seq"]
            before = service.call(logged())
            with monkeypatch.context() as watched:
                watched.setattr("activities.recall.read", noted)
                assert service.call(known(last)) == before
    finally:
        database.announce.remove(hear)
    assert batches > 16
    assert looks == 0 if heard == "all" else looks > 0
