"""Copies of a log in another session: which of its events go along, and under which ids."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import JsonValue

from domain.events import RUN_OVER_TYPES, EventPayload
from domain.ids import new_id
from domain.multiagent import run_of_thread, thread_of
from domain.queue_events import SessionSteer
from domain.thread_events import ThreadCreated

OPAQUE = frozenset({"input", "edited_input", "data", "answer_schema", "metadata", "text", "client_event_id"})
"""Members that are somebody's own words: what looks like an id in there is left as it is."""

_START = "span.model_request_start"
_SAID = frozenset({"agent.message", "agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"})
_ACCOMPANIED = frozenset({"user.message", "user.custom_tool_result"})
_MADE_HERE = {"artifact_id": "artf", "approval_id": "appr"}
"""Ids that come with an event and are no event's."""
QUIET = frozenset({"span.model_request_end", "session.status_idle"})
"""What a run writes behind its last words, before it is over."""


class Outline(NamedTuple):
    """An event without what it says."""

    id: str
    seq: int
    type: str
    run_id: str | None
    is_subagents: bool
    opened: str | None = None
    """The thread that it opens, of `session.thread_created`."""
    deferred: str | None = None
    """The message that it hands on to its run, of `session.steer`."""


def told(payload: EventPayload | None) -> tuple[str | None, str | None]:
    """What an outline has of it: the thread that it opens, and the message that it hands on."""
    match payload:
        case ThreadCreated(session_thread_id=thread):
            return thread, None
        case SessionSteer(event_id=message, status="deferred"):
            return None, message
        case _:
            return None, None


@dataclass(frozen=True)
class Selection:
    """What of a log is copied: all but what was still queued, which nobody has read."""

    dropped: frozenset[str]
    half_thoughts: frozenset[str]
    """Reasoning whose answer is cut off: vendors refuse an answer that ends with it."""
    run_ids: tuple[str, ...]
    """In the order in which they began."""


def select(outline: Sequence[Outline]) -> Selection:
    """Choose from the part of a log that is to be copied.

    A message goes along when a model has read it, or the next turn would: its run had begun and is over. A turn that had not
    begun is left out as a whole, with what was handed on to it. A system message goes where that goes which it came with.
    """
    over: set[str] = set()
    started: dict[str, int] = {}
    thoughts: dict[str, list[str]] = {}
    readers: dict[str, str] = {}
    for event in outline:
        run = event.run_id
        if run is None:
            continue
        if event.deferred is not None:
            readers[event.deferred] = run
        if event.type == "run.queued":
            over.discard(run)
        elif event.type in RUN_OVER_TYPES:
            over.add(run)
        elif event.type == _START:
            started[run] = event.seq
            thoughts.pop(run, None)
        elif event.type == "agent.thinking":
            thoughts.setdefault(run, []).append(event.id)
        elif event.type in _SAID:
            thoughts.pop(run, None)

    def queued(event: Outline) -> bool:
        run = readers.get(event.id, event.run_id)
        if run is None or run in over or (event.is_subagents and event.type != "user.message"):
            return False
        return run not in started or (event.type == "user.message" and event.seq > started[run])

    dropped: set[str] = set()
    accompanied: dict[str | None, bool] = {}
    """By run: whether the newest of what a system message may come with is left out."""
    for event in outline:
        left_out = queued(event)
        if event.type == "system.message":
            left_out = accompanied.get(event.run_id, left_out)
        elif event.type in _ACCOMPANIED:
            accompanied[event.run_id] = left_out
        if left_out:
            dropped.add(event.id)
    runs: dict[str, None] = {}
    for event in outline:
        if event.id not in dropped:
            if event.run_id is not None:
                runs[event.run_id] = None
            if event.opened is not None:
                runs[run_of_thread(event.opened)] = None
    half = frozenset(id for run, ids in thoughts.items() if run not in over for id in ids)
    return Selection(frozenset(dropped), half, tuple(runs))


def open_turn(outline: Iterable[Outline]) -> str | None:
    """The turn that has begun in there and is not over."""
    found: str | None = None
    for event in outline:
        if event.is_subagents or event.run_id is None:
            continue
        if event.type == _START:
            found = event.run_id
        elif event.type in RUN_OVER_TYPES and event.run_id == found:
            found = None
    return found


def quiet_end(rest: Iterable[Outline]) -> list[Outline]:
    """Of what a run wrote further on: how it ended, if it had said its last words. Else nothing.

    Whoever forks after an answer means the answer as it was given, and no run that was cut off behind it.
    """
    found: list[Outline] = []
    for event in rest:
        found.append(event)
        if event.type in RUN_OVER_TYPES:
            return found
        if event.type not in QUIET:
            break
    return []


class Renaming:
    """Old ids and the new ones. Of what is no id of that log nothing is changed."""

    def __init__(
        self,
        sessions: tuple[str, str],
        outline: Iterable[Outline],
        selection: Selection,
        others: Mapping[str, str] | None = None,
    ) -> None:
        """`sessions`: the old one and the new. `others`: ids that have their new ones already."""
        old, new = sessions
        self.dropped = selection.dropped
        self._new = {old: new, thread_of(old): thread_of(new), **(others or {})}
        for run in selection.run_ids:
            self._new[run] = new_id("run")
            self._new[thread_of(run)] = thread_of(self._new[run])
        for event in outline:
            if event.id not in selection.dropped:
                self._new[event.id] = new_id("sevt")
        self._seqs: list[int] = []

    def __getitem__(self, id: str) -> str:
        return self._new[id]

    def next_seq(self, seq: int) -> int:
        """The place in the copy of the event that stood there. To be asked of every event that goes along, in order."""
        self._seqs.append(seq)
        return len(self._seqs)

    def members(self, payload: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """A payload with new ids, and new places in the log, wherever its members name one."""
        return {name: self._member(name, value) for name, value in payload.items()}

    def names_dropped(self, payload: Mapping[str, JsonValue]) -> bool:
        """Whether it speaks of an event that is left out."""
        return any(name.endswith("_id") and name not in OPAQUE and value in self.dropped for name, value in payload.items())

    def _member(self, name: str, value: JsonValue) -> JsonValue:
        if name in OPAQUE:
            return value
        match value:
            case dict():
                return self.members(value)
            case list():
                return [self._member(name, item) for item in value]
            case str() if name in _MADE_HERE:
                return self._new.setdefault(value, new_id(_MADE_HERE[name]))
            case str() if name.endswith(("_id", "_ids")):
                return self._new.get(value, value)
            case int() if name.endswith("_seq") and not isinstance(value, bool):
                return bisect_right(self._seqs, value)
            case _:
                return value
