"""What a worker remembers of conversations: as much as it has room for, and no more."""

import asyncio
from typing import Any

import pytest

from activities.recall import Recall
from storage.journal import read
from tests.service import ServiceThread, Workspace
from tests.test_busy_sessions import Talk


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
