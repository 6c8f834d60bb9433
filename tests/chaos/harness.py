"""The chaos itself: the processes, the load over time, and a killer with a fixed seed."""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temporalio.client import Client

from tests.chaos.breaks import BREAKS
from tests.chaos.checks import Row, examine, read_ledger
from tests.chaos.deeds import LEDGER
from tests.chaos.load import CUSTOM, DEEDS, HELPER, KINDS, Caller, Driver, Ordeal, ordeal
from tests.durability.process import Fleet, Process

LOAD_SHARE = 0.75
"""The load arrives within this share of the time; to the end there is killing."""
CALM_SECONDS = 150
"""How long the last runs may take once nothing is killed any more."""
_CONFIG = f"""
[tools]
modules = ["tests.chaos.deeds"]

[mcp.clock]
argv = [{json.dumps(sys.executable)}, "-m", "mcp_server_time", "--local-timezone", "UTC"]
"""
_WEIGHTS = {"worker": 5, "api": 4, "temporal": 1, "redis": 1}


@dataclass(frozen=True)
class Plan:
    seconds: float
    runs: int
    seed: int
    database_url: str | None
    """None: SQLite."""
    redis: bool
    broken: str | None = None
    """A name of `tests.chaos.breaks.BREAKS`."""


@dataclass
class Outcome:
    rows: list[Row]
    kills: Counter[str]
    reconnects: int
    events: int
    unavailable: int
    calm_seconds: float

    @property
    def passed(self) -> bool:
        return all(row.held for row in self.rows)


def run(plan: Plan, folder: Path, say: Callable[[str], None]) -> Outcome:
    """Play the plan in a fresh folder."""
    (folder / "perdure.toml").write_text(_CONFIG)
    ledger = folder / "ledger"
    ledger.touch()
    prelude = BREAKS[plan.broken][1] if plan.broken else ""
    with Fleet(folder, plan.database_url, redis=plan.redis, prelude=prelude, **{LEDGER: str(ledger)}) as fleet:
        processes = [fleet.temporal(), *([fleet.redis()] if plan.redis else []), fleet.api()]
        processes += [fleet.api(fleet.ports[0]), fleet.worker(), fleet.worker()]
        fleet.ready()
        return asyncio.run(_play(plan, fleet, {process.name: process for process in processes}, ledger, say))


async def _play(
    plan: Plan, fleet: Fleet, processes: Mapping[str, Process], ledger: Path, say: Callable[[str], None]
) -> Outcome:
    caller = Caller(fleet.urls[0])
    tools = [{"type": "function", "name": name} for name in (*DEEDS, "ask_user")]
    driver, kills = Driver(caller, await _agents(caller, tools)), Counter[str]()
    ordeals = [ordeal(KINDS[n % len(KINDS)], random.Random(plan.seed * 1000 + n)) for n in range(plan.runs)]
    killing = asyncio.create_task(_kill(plan, processes, ledger, kills))
    playing = [
        asyncio.create_task(_later(driver, one, plan.seconds * LOAD_SHARE * n / plan.runs, random.Random(plan.seed + n)))
        for n, one in enumerate(ordeals)
    ]
    began = time.monotonic()
    while not killing.done():
        await asyncio.sleep(5)
        over = sum(task.done() for task in playing)
        say(f"{time.monotonic() - began:4.0f} s: {over} of {plan.runs} are over; killed so far: {dict(kills)}")
    await killing
    calm = time.monotonic()
    _, stuck = await asyncio.wait(playing, timeout=CALM_SECONDS)
    for task in stuck:
        task.cancel()
    await driver.finish()
    calm_seconds = time.monotonic() - calm
    say("looking at what is left")
    rows = await examine(ordeals, caller, read_ledger(ledger), await Client.connect(fleet.temporal_address))
    for task in playing:
        if task.done() and not task.cancelled() and (error := task.exception()):
            rows[0].faults.append(f"the client gave up: {error}")
    viewers = [viewer for one in ordeals for viewer in one.viewers]
    await caller.http.aclose()
    return Outcome(
        rows=rows,
        kills=kills,
        reconnects=sum(viewer.connections - 1 for viewer in viewers),
        events=sum(len(viewer.story.durable) for viewer in viewers),
        unavailable=caller.unavailable,
        calm_seconds=calm_seconds,
    )


async def _agents(caller: Caller, tools: list[dict[str, Any]]) -> dict[str, str]:
    asking = [tool | {"permission_policy": {"type": "always_ask"}} if tool["name"] == "pay" else tool for tool in tools]
    waits = [{"type": "function", "name": name} for name in ("wait_for_event", "sleep_until")]
    clock = {
        "type": "mcp_toolset",
        "mcp_server_name": "clock",
        "default_config": {"permission_policy": {"type": "always_allow"}},
    }
    kinds: dict[str, dict[str, Any]] = {
        "": {"tools": tools},
        "approved": {"tools": asking},
        "waited": {"tools": [*tools, *waits, CUSTOM]},
        "mcp": {"tools": [*tools, clock], "mcp_servers": [{"type": "stdio", "name": "clock", "server": "clock"}]},
    }
    kinds["delegated"] = {"tools": tools, "multiagent": {"type": "coordinator"}}
    found: dict[str, str] = {}
    for kind, members in kinds.items():
        if kind == "delegated":
            members["multiagent"]["agents"] = [found[""]]
        name = f"chaos {kind}" if kind else HELPER
        response = await caller.post("/v1/agents", {"name": name, "model": "demo:script", **members})
        assert response.is_success, response.text
        found[kind] = response.json()["id"]
    return found


async def _later(driver: Driver, one: Ordeal, seconds: float, chance: random.Random) -> None:
    await asyncio.sleep(seconds)
    await driver.play(one, chance)


async def _kill(plan: Plan, processes: Mapping[str, Process], ledger: Path, kills: Counter[str]) -> None:
    """One of each first, then at random; every victim is started again within a second, Temporal within eight."""
    chance = random.Random(plan.seed)
    end = time.monotonic() + plan.seconds
    await asyncio.sleep(2)
    first = ["worker1", "api1", "api2", "temporal1"]
    while time.monotonic() < end:
        name = first.pop(0) if first else _victim(list(processes), ledger, chance)
        victim = processes[name]
        await asyncio.to_thread(victim.kill)
        kills[_kind(name)] += 1
        await asyncio.sleep(chance.uniform(0.1, 8 if _kind(name) == "temporal" else 1))
        victim.start()
        await asyncio.sleep(chance.uniform(1, 3))
    for process in processes.values():
        if not process.alive:  # it died by itself: the checks will show what that did
            kills[f"{process.name} by itself"] += 1
            process.start()


def _victim(names: Sequence[str], ledger: Path, chance: random.Random) -> str:
    weights = [_WEIGHTS[_kind(name)] for name in names]
    if _paying(ledger) and chance.random() < 0.5:
        weights = [name.startswith("worker") for name in names]  # the moment that tells most
    return chance.choices(names, weights)[0]


def _kind(name: str) -> str:
    return name.rstrip("0123456789")


def _paying(ledger: Path) -> bool:
    lines = [line.split() for line in ledger.read_text().splitlines()[-50:]]
    done = {use for moment, _, use, _ in lines if moment == "done"}
    return any(tool == "pay" and use not in done for _, tool, use, _ in lines)
