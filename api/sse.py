"""Server-sent events: cursors in, frames out."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from api.tail import Frame, Tails, Viewer, sdk_types
from domain.errors import MalformedCursor
from domain.events import RUN_OVER_TYPES

RETRY_MS = 2000
HEARTBEAT_SECONDS = 10
SEND_TIMEOUT_SECONDS = 30
_CURSOR = re.compile(r"^(\d{1,15})(?:\.(sevt_[0-9a-z]{26})\.(\d{1,9}))?$")
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
PREVIEWED = frozenset({"agent.message", "agent.thinking"})


@dataclass(frozen=True)
class Start:
    """Where a stream begins: after a seq, perhaps inside a text that was being written."""

    seq: int
    event_id: str | None = None
    offset: int = 0


def start_of(request: Request, after: int | None, last_seq: int, default: int) -> Start:
    """`Last-Event-ID`, else `?after=`, else `default`. Raises MalformedCursor for a foreign one or one beyond the end."""
    header = request.headers.get("last-event-id")
    if header:
        found = _CURSOR.match(header)
        if found is None:
            raise MalformedCursor("Last-Event-ID is not an id of this stream.")
        start = Start(int(found[1]), found[2], int(found[3] or 0))
    else:
        start = Start(default if after is None else after)
    if not 0 <= start.seq <= last_seq:
        raise MalformedCursor(f"The cursor {start.seq} is beyond the end of the log, which is at {last_seq}.")
    return start


def viewer(request: Request, start: Start, *, run_id: str | None, types: list[str] | None, deltas: list[str] | None) -> Viewer:
    """What this caller wants to see."""
    sdk = is_sdk(request)
    if deltas is not None:
        previews = PREVIEWED & frozenset(deltas)
    else:
        previews = frozenset[str]() if sdk else PREVIEWED
    return Viewer(
        after=start.seq,
        run_id=run_id,
        types=sdk_types(types) if sdk else None if types is None else frozenset(types),
        previews=previews,
        resume_event=start.event_id,
        resume_offset=start.offset,
    )


def is_sdk(request: Request) -> bool:
    return "anthropic-beta" in request.headers


def stream(
    request: Request, tails: Tails, session_id: str, viewer: Viewer, last_seq: int, *, ends_after: int | None = None
) -> EventSourceResponse:
    """The response. `ends_after`: end with the run's last event behind that seq, and `event: done`."""
    sdk = is_sdk(request)
    return EventSourceResponse(
        _frames(tails, session_id, viewer, last_seq, sdk=sdk, ends_after=ends_after),
        ping=HEARTBEAT_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="hb"),
        send_timeout=SEND_TIMEOUT_SECONDS,
        headers=_HEADERS,
        sep="\n",
    )


async def _frames(
    tails: Tails, session_id: str, viewer: Viewer, last_seq: int, *, sdk: bool, ends_after: int | None
) -> AsyncIterator[bytes]:
    yield f"retry: {RETRY_MS}\n: connected\n\n".encode()
    seen = viewer.after
    over: Frame | None = None
    shown = viewer.types
    if ends_after is not None and shown is not None:
        viewer.types = shown | RUN_OVER_TYPES
    async with aclosing(tails.follow(session_id, viewer, last_seq)) as frames:  # type: ignore[type-var]
        async for frame in frames:
            if frame.seq is None:
                for piece in _preview_frames(frame, viewer, seen):
                    yield piece
                continue
            seen = frame.seq
            if shown is None or frame.type in shown:
                yield _encode(str(seen), frame.type, frame.sdk_data if sdk else frame.data)
            if ends_after is not None and frame.type in RUN_OVER_TYPES and seen > ends_after:
                over = frame
                break
    if over is not None:
        yield _encode(str(seen), "done", json.dumps({"type": "done", "run_id": over.run_id, "status": over.type[4:]}))


def _preview_frames(frame: Frame, viewer: Viewer, seen: int) -> list[bytes]:
    delta = frame.content["delta"]["content"]
    end = frame.offset + len(delta[delta["type"]])
    out: list[bytes] = []
    if frame.event_id not in viewer.opened:
        viewer.opened.add(frame.event_id)
        opening = {"type": "event_start", "event": {"type": frame.preview, "id": frame.event_id}}
        out.append(_encode(f"{seen}.{frame.event_id}.0", "event_start", json.dumps(opening)))
    out.append(_encode(f"{seen}.{frame.event_id}.{end}", "event_delta", frame.data))
    return out


def _encode(id: str, event: str, data: str) -> bytes:
    return f"id: {id}\nevent: {event}\ndata: {data}\n\n".encode()
