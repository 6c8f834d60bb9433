"""Full text and filtered lists of a database with very many sessions, beside one with few."""

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, text

from benchmarks.lists import WARM_UP, figure
from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept, percentile
from benchmarks.seeds import tables_of
from benchmarks.service import Perdure, api, temporal
from domain.agents import AgentConfig, ModelConfig
from domain.clock import now
from domain.events import TextContent, UserMessage
from domain.ids import new_id
from domain.search import indexed
from storage.agents import Agents
from storage.database import Database
from storage.keys import DEFAULT_WORKSPACE
from storage.search_tables import SearchTextRow, SessionLabelRow
from storage.tables import EventRow, SessionRow
from tests.postgres import PostgresServer, PostgresUnavailable

MAX_MS = 100
SAME = 100
"""Sessions that both databases begin with, the oldest: what the filters look for."""
PIECE = 2_000
WORDS = 60
"""Of a message."""
_ENDINGS = ("", "s", "ed", "ing", "er")

SEARCHES = {
    "a word of every message": "everywhere",
    "a word of one message in a hundred": "sometimes",
    "a word of one message": "needle",
    "three words": "everywhere term1 term22",
    "a phrase": '"everywhere term1"',
    "the beginning of a word": "every",
    "a word of every message, of a tag": "everywhere&tag=old",
}
FILTERED = {
    "sessions of a tag": "tag=old",
    "sessions of a provider": "provider=older",
    "sessions of a model": "model=older:one",
}


async def measure(size: Size) -> Report:
    figures = await _both("SQLite", size, None)
    try:
        if size.postgres:
            with PostgresServer() as server:
                figures += await _both("Postgres", size, server)
    except PostgresUnavailable as error:
        print(f"*** not measured on Postgres: {error}")
    measured = _MEASURED.format(sessions=size.sessions, few=SAME, words=WORDS, requests=size.requests, rounds=size.rounds)
    return Report(figures, f"{SAME} sessions", measured, f"{size.sessions:,} sessions")


_MEASURED = """
Two `perdure api` processes, each with a database of its own, one with {few} sessions and one with {sessions}, each with one
message of {words} words, are asked over HTTP. Lists: {requests} requests in each of {rounds} rounds, in turns, as in "Lists
with many runs". Searches: as many requests to the large one; shown is the 95th percentile in ms of all.
"""


async def _both(kind: str, size: Size, server: PostgresServer | None) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-bench-")))
        address = await stack.enter_async_context(temporal(folder))
        sides: list[Perdure] = []
        for sessions in (SAME, size.sessions):
            print(f"{kind}: a database with {sessions:,} sessions", flush=True)
            (own := folder / str(len(sides))).mkdir()
            url = None if server is None else server.create_database()
            service = await stack.enter_async_context(api(own, address, url))
            async with tables_of(service) as database:
                await many_sessions(database, sessions)
            sides.append(service)
        few, many = sides
        return await compared(kind, few, many, size)


async def compared(kind: str, few: Perdure, many: Perdure, size: Size) -> list[Figure]:
    figures = [
        await figure(f"{name} ({kind})", (few, f"/v1/sessions?{query}"), (many, f"/v1/sessions?{query}"), size)
        for name, query in FILTERED.items()
    ]
    return figures + [await _searched(f"{name}, p95 ms ({kind})", many, query, size) for name, query in SEARCHES.items()]


async def _searched(name: str, service: Perdure, query: str, size: Size) -> Figure:
    samples: list[float] = []
    used = cpu_seconds(service.pid)
    for number in range(WARM_UP + size.rounds * size.requests):
        began = time.perf_counter()
        found = await service.get(f"/v1/sessions?search={query}")
        if number >= WARM_UP:
            samples.append((time.perf_counter() - began) * 1000)
        if not found["data"]:
            raise AssertionError(f"{name}: nothing is found")
    p95, half = percentile(samples, 0.95), percentile(samples, 0.5)
    cpu = (cpu_seconds(service.pid) - used) / (WARM_UP + len(samples)) * 1000
    return Figure(name, f"{p95:.1f} (median {half:.1f}, CPU {cpu:.1f})", f"≤ {MAX_MS}", kept(p95 <= MAX_MS))


async def many_sessions(database: Database, count: int) -> None:
    """Sessions of a message each; the first `SAME` have a tag, and a provider that the others have not."""
    begin = now() - timedelta(seconds=count + 60)
    async with database.write() as transaction:
        agents = Agents(transaction.connection, DEFAULT_WORKSPACE)
        config = AgentConfig(name="searched", model=ModelConfig(id="demo:echo"))
        agent = await agents.create(config)
    chance = random.Random(1)
    for place in range(0, count, PIECE):
        numbers = range(place, min(count, place + PIECE))
        sessions = [_session(agent.id, number < SAME, begin + timedelta(seconds=number)) for number in numbers]
        said = [" ".join(_message(number, chance)) for number in numbers]
        pairs = list(zip(sessions, said, strict=True))
        async with database.write() as transaction:
            execute = transaction.connection.execute
            await execute(insert(SessionRow), [session.model_dump() for session in sessions])
            events = [_event(*pair) for pair in pairs]
            await execute(insert(EventRow), events)
            texts = [_text(session, event["id"], words) for (session, words), event in zip(pairs, events, strict=True)]
            await execute(insert(SearchTextRow), texts)
            if labels := [_label(session) for session in sessions if session.tags]:
                await execute(insert(SessionLabelRow), labels)
    if not database.is_sqlite:
        async with database.write() as transaction:
            await transaction.connection.execute(text("ANALYZE"))  # as its own daemon does within a minute


def _message(number: int, chance: random.Random) -> Iterator[str]:
    """A few words are in most messages, and most words in few, as people write."""
    yield "everywhere"
    if number % 20 == 10:
        yield "term1"
    if number % 100 == 0:
        yield "sometimes"
    if number == 0:
        yield "needle"
    for _ in range(WORDS):
        yield f"term{int(20_000 * chance.random() ** 4)}{chance.choice(_ENDINGS)}"


def _session(agent_id: str, old: bool, moment: Any) -> SessionRow:
    return SessionRow(
        id=new_id("sesn"),
        workspace_id=DEFAULT_WORKSPACE,
        agent_id=agent_id,
        agent_version=1,
        provider="older" if old else "demo",
        model="older:one" if old else "demo:echo",
        tags=["old"] if old else [],
        meta={},
        last_seq=1,
        created_at=moment,
        updated_at=moment,
    )


def _event(session: SessionRow, said: str) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "seq": 1,
        "id": new_id("sevt"),
        "type": "user.message",
        "append_index": 0,
        "created_at": session.created_at,
        "processed_at": session.created_at,
        "payload": UserMessage(content=(TextContent(text=said),)).model_dump(mode="json"),
    }


def _text(session: SessionRow, event_id: str, said: str) -> dict[str, Any]:
    return {"workspace_id": session.workspace_id, "session_id": session.id, "event_id": event_id, "words": indexed(said)}


def _label(session: SessionRow) -> dict[str, Any]:
    return {
        "session_id": session.id,
        "kind": "tag",
        "label": "old",
        "workspace_id": session.workspace_id,
        "created_at": session.created_at,
    }
