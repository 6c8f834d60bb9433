"""What chaos is done to: runs of every kind, each driven by a client that repeats what was not accepted."""

import asyncio
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import httpx2

from domain.events import RUN_OVER_TYPES
from tests.chaos.viewer import ChaosViewer
from tests.durability.process import AUTH, Story

Kind = Literal[
    "plain", "cancelled", "paused", "asked", "turns", "approved", "waited", "mcp", "delegated", "steered", "interrupted"
]
KINDS: tuple[Kind, ...] = (
    *("plain", "approved", "paused", "waited", "cancelled"),
    *("mcp", "delegated", "steered", "interrupted", "asked", "turns", "plain"),
)
STEPS = 5
TURNS = 3
OVER = frozenset({"completed", "failed", "cancelled", "terminated"})
TALKS = frozenset({"turns", "steered", "interrupted"})
"""Kinds with several messages in their session."""
DEEDS = ("look", "put", "pay")
HELPER = "chaos helper"
CUSTOM: Mapping[str, Any] = {
    "type": "custom",
    "name": "ours",
    "description": "A tool of the caller's.",
    "input_schema": {"type": "object"},
}


@dataclass
class Ordeal:
    """One piece of load and what came of it, as its client saw it."""

    kind: Kind
    script: str
    run_ids: list[str] = field(default_factory=list[str])
    session_id: str = ""
    viewers: list[ChaosViewer] = field(default_factory=list[ChaosViewer])
    accepted: list[str] = field(default_factory=list[str])
    """One line for every POST that was answered with a 2xx."""
    refused: list[str] = field(default_factory=list[str])
    """What was answered with a 4xx that is no race."""
    cancelled_at: float | None = None
    decisions: dict[str, str] = field(default_factory=dict[str, str])
    """By tool use: the decision on its approval that was answered with 200."""
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Caller:
    """POSTs until an answer comes; every POST has an idempotency key, so that repeating it is safe."""

    def __init__(self, url: str) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        self.http = httpx2.AsyncClient(base_url=url, headers=AUTH, timeout=httpx2.Timeout(20, pool=None), limits=limits)
        self.unavailable = 0
        """Answers with 503, each of which was tried again."""
        self.server_errors: list[str] = []

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        return await self._until_answered("POST", path, body or {}, {"Idempotency-Key": uuid4().hex})

    async def get(self, path: str) -> dict[str, Any]:
        response = await self._until_answered("GET", path, None, {})
        assert response.status_code == 200, response.text
        return response.json()

    async def pages(self, path: str) -> list[dict[str, Any]]:
        """All of a list."""
        found: list[dict[str, Any]] = []
        page: str | None = ""
        while page is not None:
            answer = await self.get(f"{path}{'&' if '?' in path else '?'}{f'page={page}' if page else ''}")
            found += answer["data"]
            page = answer["next_page"]
        return found

    async def _until_answered(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: dict[str, str]
    ) -> httpx2.Response:
        while True:
            try:
                response = await self.http.request(method, path, json=body, headers=headers)
            except httpx2.HTTPError:
                await asyncio.sleep(0.1)
                continue
            if response.status_code >= 500 and response.status_code != 503:
                self.server_errors.append(f"{method} {path}: {response.status_code} {response.text[:300]}")
            in_flight = response.status_code == 409 and response.json().get("code") == "idempotency_in_flight"
            if response.status_code < 500 and not in_flight:
                return response
            self.unavailable += response.status_code == 503
            await asyncio.sleep(min(float(response.headers.get("Retry-After", "0.2")), 1))


def ordeal(kind: Kind, chance: random.Random) -> Ordeal:
    steps: list[dict[str, Any]] = []
    if kind == "asked":
        steps.append({"text": "may I?", "tools": [{"name": "ask_user", "input": {"question": "May I?"}}]})
    if kind == "approved":
        pay = {"name": "pay", "input": {"seconds": 0.5}}
        steps.append({"text": "may I pay?", "tools": [pay, pay, {"name": "look", "input": {"seconds": 0.5}}]})
    if kind == "waited":
        event = {"name": "wait_for_event", "input": {"event_type": _event_type(chance)}}
        question = {"name": "ask_user", "input": {"question": "Which?", "choices": ["this", "that"]}}
        sleep = {"name": "sleep_until", "input": {"seconds": 2}}
        steps.append({"text": "waiting ", "tools": [event, question, sleep, {"name": CUSTOM["name"], "input": {}}]})
    if kind == "delegated":
        below = [{"text": "below ", "tools": [{"name": name, "input": {"seconds": 0.5}}]} for name in ("pay", "put")]
        task = json.dumps({"script": [*below, {"text": "the end of it"}]})
        steps.append({"text": "delegating ", "tools": [{"name": "delegate", "input": {"agent": HELPER, "task": task}}] * 2})
    deeds = [name for name in DEEDS if kind != "approved" or name != "pay"]
    while len(steps) < STEPS - 1:
        tools: list[dict[str, Any]] = [
            {"name": name, "input": {"seconds": round(chance.uniform(0.1, 1.2), 2)}} for name in deeds
        ]
        chosen = chance.sample(tools, k=chance.randint(1, len(tools)))
        if kind == "mcp":
            chosen.append({"name": "clock__get_current_time", "input": {"timezone": "Europe/Rome"}})
        steps.append({"text": "working ", "words": 15, "delay_ms": 30, "tools": chosen})
    steps.append({"text": "the end ", "words": 20, "delay_ms": 30})
    return Ordeal(kind, json.dumps({"script": steps if kind != "turns" else steps[-2:]}))


def _event_type(chance: random.Random) -> str:
    return f"chaos.{chance.getrandbits(64):x}"


class Driver:
    """Plays ordeals through the front door."""

    def __init__(self, caller: Caller, agents: Mapping[str, str]) -> None:
        """`agents`: ids by the kind of ordeal; `""` is for the kinds that have none of their own."""
        self._caller = caller
        self._agents = agents
        self._watching: set[asyncio.Task[None]] = set()

    async def play(self, ordeal: Ordeal, chance: random.Random) -> None:
        if ordeal.kind == "turns":
            await self._turns(ordeal)
        else:
            await self._run(ordeal)
        match ordeal.kind:
            case "cancelled":
                await asyncio.sleep(chance.uniform(0.5, 6))
                if await self._command(ordeal, "cancel"):
                    ordeal.cancelled_at = time.time()
            case "paused":
                await asyncio.sleep(chance.uniform(0.2, 3))
                if await self._command(ordeal, "pause", {"mode": chance.choice(("step", "now"))}):
                    await self._until(ordeal.run_ids[0], OVER | {"paused"})
                    await self._command(ordeal, "resume")
            case "asked":
                if await self._until(ordeal.run_ids[0], OVER | {"waiting"}) == "waiting":
                    await self._command(ordeal, "input", {"content": "you may"})
            case "approved":
                await self._approve(ordeal)
            case "waited":
                await self._wake(ordeal)
            case "steered":
                await asyncio.sleep(chance.uniform(0.2, 4))
                await self._talk(ordeal, "steer", "By the way.")
            case "interrupted":
                await asyncio.sleep(chance.uniform(0.2, 4))
                await self._talk(ordeal, "interrupt", ordeal.script)
            case _:
                pass
        for run_id in ordeal.run_ids:
            await self._until(run_id, OVER)

    async def finish(self) -> None:
        """Wait for the viewers, which must see the end by themselves."""
        if self._watching:
            await asyncio.wait(self._watching, timeout=30)
        for task in self._watching:
            task.cancel()

    async def _run(self, ordeal: Ordeal) -> None:
        created = await self._accepted(ordeal, "/v1/runs", {"agent": self._agent_of(ordeal), "input": ordeal.script})
        ordeal.run_ids.append(created["id"])
        ordeal.session_id = created["session_id"]
        if ordeal.kind not in TALKS:
            for _ in range(2):
                self._watch(ordeal, f"/v1/runs/{created['id']}/events/stream")

    def _agent_of(self, ordeal: Ordeal) -> str:
        return self._agents.get(ordeal.kind, self._agents[""])

    async def _approve(self, ordeal: Ordeal) -> None:
        """Of two decisions at once on the first approval one counts; the second approval is denied."""
        path = f"/v1/approvals?run_id={ordeal.run_ids[0]}&order=asc"
        while len(found := (await self._caller.get(path))["data"]) < 2:
            await asyncio.sleep(0.3)
        first, second = found
        decisions = ((first, "approve"), (first, "deny"), (second, "deny"))
        await asyncio.gather(*(self._decide(ordeal, approval, decision) for approval, decision in decisions))

    async def _decide(self, ordeal: Ordeal, approval: Mapping[str, Any], decision: str) -> None:
        response = await self._caller.post(f"/v1/approvals/{approval['id']}/decision", {"decision": decision})
        if response.is_success:
            ordeal.accepted.append("decision")
            ordeal.decisions[approval["tool_use_id"]] = response.json()["status"]
        elif response.json().get("code") != "approval_decided":
            ordeal.refused.append(f"decision: {response.status_code} {response.text[:200]}")

    async def _wake(self, ordeal: Ordeal) -> None:
        """Answer everything that the first step waits for."""
        path = f"/v1/runs/{ordeal.run_ids[0]}/events?limit=1000"
        while True:
            events = {event["type"]: event for event in (await self._caller.get(path))["data"]}
            if "agent.custom_tool_use" in events:  # written with the rest of its step
                break
            await asyncio.sleep(0.3)
        answer = {"type": "user.answer", "tool_use_id": events["agent.question"]["tool_use_id"], "content": "this"}
        result = {"type": "user.custom_tool_result", "custom_tool_use_id": events["agent.custom_tool_use"]["id"]}
        waits = [
            e for e in (await self._caller.get(path))["data"] if e["type"] == "run.waiting" and e["waiting_for"] == "event"
        ]
        outside = {"type": waits[0]["event_type"], "data": {"n": 1}}
        session = f"/v1/sessions/{ordeal.session_id}/events"
        posts = ((session, {"events": [answer]}), ("/v1/external_events", outside), (session, {"events": [result]}))
        for where, body in posts:
            response = await self._caller.post(where, body)
            if response.is_success and response.json().get("woken", 1) == 1:
                ordeal.accepted.append("answer")
            else:
                ordeal.refused.append(f"{where}: {response.status_code} {response.text[:200]}")

    async def _turns(self, ordeal: Ordeal) -> None:
        session = await self._accepted(ordeal, "/v1/sessions", {"agent": self._agent_of(ordeal)})
        ordeal.session_id = session["id"]
        for _ in range(TURNS):
            answer = await self._accepted(ordeal, f"/v1/sessions/{session['id']}/messages", {"content": ordeal.script})
            ordeal.run_ids.append(answer["run"]["id"])
        self._watch(ordeal, f"/v1/sessions/{session['id']}/events/stream?after=0")

    async def _talk(self, ordeal: Ordeal, on_busy: str, content: str) -> None:
        """A message to the session, which is busy or is not any more."""
        path = f"/v1/sessions/{ordeal.session_id}"
        run_id = (await self._accepted(ordeal, f"{path}/messages", {"content": content, "on_busy": on_busy}))["run"]["id"]
        if run_id not in ordeal.run_ids:
            ordeal.run_ids.append(run_id)
        self._watch(ordeal, f"{path}/events/stream?after=0")

    def _watch(self, ordeal: Ordeal, path: str) -> None:
        viewer = ChaosViewer(self._caller.http, path, Story(every_seq=ordeal.kind != "delegated"))
        ordeal.viewers.append(viewer)
        if ordeal.kind in TALKS:
            last = ordeal.run_ids[-1]
            viewer.ends_with = lambda frame: frame.event in RUN_OVER_TYPES and frame.data["run_id"] == last
        self._watching.add(asyncio.create_task(viewer.watch()))

    async def _accepted(self, ordeal: Ordeal, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        response = await self._caller.post(path, body)
        assert response.is_success, f"{path}: {response.status_code} {response.text}"
        ordeal.accepted.append(path)
        return response.json()

    async def _command(self, ordeal: Ordeal, name: str, body: Mapping[str, Any] | None = None) -> bool:
        """False when the run was over before."""
        response = await self._caller.post(f"/v1/runs/{ordeal.run_ids[0]}/{name}", body)
        if response.is_success:
            ordeal.accepted.append(name)
        elif response.json().get("code") != "run_finished":
            ordeal.refused.append(f"{name}: {response.status_code} {response.text[:200]}")
        return response.is_success

    async def _until(self, run_id: str, statuses: frozenset[str]) -> str:
        while (status := str((await self._caller.get(f"/v1/runs/{run_id}"))["status"])) not in statuses:
            await asyncio.sleep(0.3)
        return status
