"""What streams send: frames made of events and of the text being written, in our words and in the `anthropic` package's."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from domain.batch_events import BatchEvent
from domain.clock import now, wire
from domain.events import Event
from domain.ids import new_id
from domain.sdk_events import SDK_TYPES
from live.bus import Preview


@dataclass(frozen=True)
class Frame:
    """One SSE event. Encoded once, whoever it is sent to."""

    type: str
    run_id: str | None
    content: dict[str, Any]
    seq: int | None = None
    """None for what no log remembers: previews, and that the session was deleted."""
    event_id: str = ""
    preview: Preview | None = None

    @cached_property
    def data(self) -> str:
        return json.dumps(self.content, ensure_ascii=False, separators=(",", ":"))

    @cached_property
    def sdk_data(self) -> str:
        return json.dumps(for_sdk(self.content), ensure_ascii=False, separators=(",", ":"))


def durable(event: Event) -> Frame:
    content = event.wire()
    if isinstance(event.payload, BatchEvent):  # it is in no session that anybody can see
        content["batch_id"] = content.pop("session_id")
        del content["run_id"], content["processed_at"]
    return Frame(type=event.type, run_id=event.run_id, content=content, seq=event.seq, event_id=event.id)


def deleted(session_id: str) -> Frame:
    """The last frame of a session that was deleted, its log with it."""
    event_id = new_id("sevt")
    content = {"id": event_id, "type": "session.deleted", "session_id": session_id, "processed_at": wire(now())}
    return Frame(type="session.deleted", run_id=None, content=content, event_id=event_id)


def start(preview: Preview) -> Frame:
    # The run says whose text it is: where its call fails, what others are writing in the same session still counts.
    content = {"type": "event_start", "event": {"type": preview.type, "id": preview.event_id}, "run_id": preview.run_id}
    return Frame(type="event_start", run_id=preview.run_id, content=content, event_id=preview.event_id, preview=preview)


def delta(preview: Preview) -> Frame:
    kind = "thinking" if preview.type == "agent.thinking" else "text"
    piece = {"type": "content_delta", "index": 0, "content": {"type": kind, kind: preview.text}}
    content = {"type": "event_delta", "event_id": preview.event_id, "delta": piece}
    return Frame(type="event_delta", run_id=preview.run_id, content=content, event_id=preview.event_id, preview=preview)


_SDK_STOPS = {
    "end_turn": "end_turn",
    "requires_action": "requires_action",
    "interrupted": "end_turn",
    "refusal": "refusal",
    "error": "retries_exhausted",
    "retries_exhausted": "retries_exhausted",
}


def for_sdk(content: dict[str, Any]) -> dict[str, Any]:
    """Stop reasons in the words that the `anthropic` package knows."""
    if content["type"] not in ("session.status_idle", "session.thread_status_idle"):
        return content
    stop = _SDK_STOPS.get(content["stop_reason"]["type"], "budget_reached")
    return {**content, "stop_reason": {**content["stop_reason"], "type": stop}}


def sdk_types(types: Iterable[str] | None) -> frozenset[str]:
    """The types that callers with `anthropic-beta` get."""
    return SDK_TYPES if types is None else SDK_TYPES & frozenset(types)
