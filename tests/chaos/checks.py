"""What must hold when it is over, seen from outside: HTTP, what viewers were told, Temporal, what the tools did."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus

from activities.tools import UNKNOWN_OUTCOME
from tests.chaos.load import OVER, STEPS, TALKS, TURNS, Caller, Ordeal

Objects = Sequence[Mapping[str, Any]]
RESULTS = {
    "agent.tool_result": "tool_use_id",
    "agent.mcp_tool_result": "mcp_tool_use_id",
    "user.custom_tool_result": "custom_tool_use_id",
}
USES = ("agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use")
STOPPED = ("cancelled", "interrupted")
GRACE_SECONDS = 20
"""A cancel that is accepted just before the end may come too late; after this long it may not."""
_CLOSED = {"completed": WorkflowExecutionStatus.COMPLETED, "cancelled": WorkflowExecutionStatus.CANCELED}


@dataclass
class Row:
    """One line of the table: how many were looked at, and what was wrong with them."""

    name: str
    looked_at: int = 0
    faults: list[str] = field(default_factory=list[str])
    measured: str = ""
    """A figure beside its target, where there is one."""

    @property
    def held(self) -> bool:
        """What nobody looked at is not held."""
        return not self.faults and self.looked_at > 0

    def check(self, holds: bool, fault: str) -> None:
        self.looked_at += 1
        if not holds:
            self.faults.append(fault)


@dataclass(frozen=True)
class Ledger:
    """What the tools wrote down: by tool use, how often it began and was done, and under which keys."""

    began: Mapping[str, Counter[str]]
    done: Counter[str]
    keys: Mapping[str, set[str]]


def read_ledger(path: Path) -> Ledger:
    began: defaultdict[str, Counter[str]] = defaultdict(Counter)
    done: Counter[str] = Counter()
    keys: defaultdict[str, set[str]] = defaultdict(set)
    for line in path.read_text().splitlines():
        moment, tool, use, key = line.split()
        if moment == "began":
            began[tool][use] += 1
        else:
            done[use] += 1
        keys[use].add(key)
    return Ledger(began, done, keys)


async def examine(ordeals: Sequence[Ordeal], caller: Caller, ledger: Ledger, temporal: Client) -> list[Row]:
    """The table, one row an invariant."""
    ends, stories = Row("runs that end as they should"), Row("viewers told everything once and in order")
    posts, steps = Row("accepted POSTs that happened, once"), Row("tool uses with one result, steps with one answer")
    for ordeal in ordeals:
        rows = [await caller.get(f"/v1/runs/{run_id}") for run_id in ordeal.run_ids]
        if ordeal.kind == "delegated":
            below = await caller.pages(f"/v1/runs?parent_run_id={ordeal.run_ids[0]}&limit=100")
            ends.check([row["status"] for row in below] == ["completed"] * 2, f"{ordeal.run_ids[0]} has below it: {below}")
        events = await caller.pages(f"/v1/sessions/{ordeal.session_id}/events?limit=1000")
        session = await caller.get(f"/v1/sessions/{ordeal.session_id}")
        for row in rows:
            ends.check(_ended_well(ordeal, row), f"{row['id']} ({ordeal.kind}) is {row['status']}: {row['error']}")
        ends.check(session["status"] == "idle" and session["active_run_id"] is None, f"{session['id']} is not idle")
        for fault in ordeal.refused:
            posts.check(False, f"{ordeal.kind}: {fault}")
        for holds, fault in _happened(ordeal, rows, events):
            posts.check(holds, f"{ordeal.session_id} ({ordeal.kind}): {fault}")
        for holds, fault in _steps(ordeal, events):
            steps.check(holds, f"{ordeal.session_id} ({ordeal.kind}): {fault}")
        log = [event["id"] for event in events if event["run_id"] in ordeal.run_ids]  # a sub-agent's has a run of its own
        for viewer in ordeal.viewers:
            story = viewer.story
            told = [str(event["id"]) for event in story.durable]
            fault = "; ".join(story.faults[:3]) or ("saw no end" if not story.done else f"was told {len(told)} of {len(log)}")
            stories.check(not story.faults and story.done and told == log, f"{viewer.path}: {fault}")
    decided = Row("approvals decided once, and what was denied not done")
    for ordeal in ordeals:
        for holds, fault in await _decided(ordeal, caller, ledger):
            decided.check(holds, f"{ordeal.session_id}: {fault}")
    servers = Row("calls of an MCP server that it answered, once")
    for ordeal in ordeals:
        if ordeal.kind == "mcp":
            for holds, fault in _served(await caller.pages(f"/v1/sessions/{ordeal.session_id}/events?limit=1000")):
                servers.check(holds, f"{ordeal.session_id}: {fault}")
    known = [row for row in await caller.pages("/v1/runs?limit=100") if row["kind"] != "subagent"]
    accepted = {run_id for ordeal in ordeals for run_id in ordeal.run_ids}
    posts.check({row["id"] for row in known} == accepted, f"{len(known)} runs exist, {len(accepted)} were accepted")
    answers = Row("answers with 5xx other than 503")
    answers.check(not caller.server_errors, "; ".join(caller.server_errors[:3]))
    return [
        ends,
        stories,
        *_deeds(ledger),
        steps,
        decided,
        servers,
        posts,
        await _workflows(accepted, caller, temporal),
        answers,
    ]


def _ended_well(ordeal: Ordeal, row: Mapping[str, Any]) -> bool:
    if ordeal.kind == "cancelled" and ordeal.cancelled_at is not None:
        if row["status"] == "completed":
            return datetime.fromisoformat(row["finished_at"]).timestamp() < ordeal.cancelled_at + GRACE_SECONDS
        return row["status"] == "cancelled" and row["cancel_requested_at"] is not None
    stopped = ordeal.kind == "interrupted" and row["id"] == ordeal.run_ids[0] and row["status"] == "cancelled"
    return stopped or row["status"] == "completed"


def _happened(ordeal: Ordeal, rows: Objects, events: Objects) -> Iterator[tuple[bool, str]]:
    types = Counter(event["type"] for event in events)
    messages = TURNS if ordeal.kind == "turns" else 2 if ordeal.kind in TALKS else 1
    if ordeal.kind == "steered":
        said = [event["status"] for event in events if event["type"] == "session.steer"]
        # One that came behind the turn's end has a turn of its own.
        yield said == (["accepted", "applied"] if len(rows) == 1 else []), f"the steered message was {said}"
    if ordeal.kind == "interrupted":
        ended = [event["run_id"] for event in events if event["type"] in ("run.completed", "run.cancelled")]
        yield ended == ordeal.run_ids, f"the turns ended in the order {ended}"
    if ordeal.kind == "waited":
        answered = (types["user.answer"], types["user.custom_tool_result"], types["external_event.received"])
        yield answered == (1, 1, 1), f"answers, results and events: {answered}"
    yield types["user.message"] == messages, f"{types['user.message']} messages of {messages}"
    if "input" in ordeal.accepted:
        yield types["user.answer"] == 1, f"{types['user.answer']} answers"
    if "pause" in ordeal.accepted:
        yield types["run.paused"] == 1 or rows[0]["status"] in OVER, f"{types['run.paused']} pauses"
    if ordeal.kind == "turns":
        ended = [event["run_id"] for event in events if event["type"] == "run.completed"]
        yield ended == ordeal.run_ids, f"turns ended in the order {ended}"


def _steps(ordeal: Ordeal, events: Objects) -> Iterator[tuple[bool, str]]:
    results = Counter(event[RESULTS[event["type"]]] for event in events if event["type"] in RESULTS)
    for event in events:
        if event["type"] in USES:
            count = results[event["id"]]
            # A cancelled run may end between a tool use and its result.
            yield count == 1 or (count == 0 and ordeal.kind in STOPPED), f"{event['id']} has {count} results"
    if ordeal.kind not in STOPPED:
        own = [e for e in events if e["run_id"] in ordeal.run_ids]
        whole = [e for e in own if e["type"] == "agent.message" and not e.get("interrupted")]
        last = [e["content"][0]["text"].startswith("the end ") for e in whole]
        expected = [False, True] * TURNS if ordeal.kind == "turns" else [False] * (STEPS - 1) + [True]
        if not any(event.get("interrupted") for event in events):  # an interrupted step counts as played
            more = [False] * (ordeal.kind == "steered" and len(last) > len(expected))  # a call to answer what came at the end
            yield last == expected + more, f"{len(whole)} answers of {len(expected)}"


async def _decided(ordeal: Ordeal, caller: Caller, ledger: Ledger) -> list[tuple[bool, str]]:
    """Of each approval: its row says what was answered, and its tool was called if, and only if, that was yes."""
    found: list[tuple[bool, str]] = []
    if ordeal.kind != "approved":
        return found
    found.append((len(ordeal.decisions) == 2, f"{len(ordeal.decisions)} of 2 decisions were answered with yes"))
    for approval in await caller.pages(f"/v1/approvals?run_id={ordeal.run_ids[0]}&limit=100"):
        use, status = approval["tool_use_id"], approval["status"]
        answered = ordeal.decisions.get(use)
        found.append((status == answered, f"{use} is {status}, answered was {answered}"))
        begun = ledger.began.get("pay", Counter[str]())[use]
        found.append((begun <= (status == "approved"), f"{use} is {status} and was started {begun} times"))
    return found


def _served(events: Objects) -> Iterator[tuple[bool, str]]:
    """Those that were lost with their worker are not counted: were all of them, nothing was looked at."""
    for event in events:
        if event["type"] == "agent.mcp_tool_result":
            text = event["content"][0]["text"]
            if text != UNKNOWN_OUTCOME and "is not available" not in text:
                good = not event["is_error"] and '"timezone": "Europe/Rome"' in text
                yield good, f"{event['mcp_tool_use_id']} was answered: {text[:200]}"


def _deeds(ledger: Ledger) -> Iterator[Row]:
    once = Row("`once` tools started at most once")
    for use, count in ledger.began.get("pay", Counter[str]()).items():
        once.check(count == 1, f"{use} was started {count} times")
    yield once
    same = Row("tools repeated under the same idempotency key")
    for use, keys in ledger.keys.items():
        same.check(len(keys) == 1 and next(iter(keys)).endswith(f"/{use}"), f"{use} ran under {sorted(keys)}")
    yield same


async def _workflows(run_ids: set[str], caller: Caller, temporal: Client) -> Row:
    row = Row("workflows that agree with their rows")
    found: defaultdict[str, list[WorkflowExecutionStatus | None]] = defaultdict(list)
    async for execution in temporal.list_workflows("WorkflowType = 'agent_run'"):
        found[execution.id].append(execution.status)
    for run_id in run_ids:
        run = await caller.get(f"/v1/runs/{run_id}")
        expected = [_CLOSED.get(run["status"])]
        # What was cancelled before it began need never have reached Temporal.
        agrees = found[run_id] == expected or (run["started_at"] is None and not found[run_id])
        row.check(agrees, f"{run_id} is {run['status']}, its workflows are {found[run_id]}")
    return row
