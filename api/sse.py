"""Server-sent events: cursors in, frames out."""

import json
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from fastapi import Request
from sse_starlette import EventSourceResponse, ServerSentEvent

from api.admission import Admissions
from api.client_access import hidden_from
from api.frames import sdk_types
from api.state import Service
from api.tail import CLOSING, Tails, Viewer
from domain.errors import MalformedCursor
from domain.events import RUN_OVER_TYPES
from domain.keys import Principal

RETRY_MS = 2000
FAREWELL_RETRY_MS = (500, 4000)
"""Spread, so that the viewers of a process that ends do not all come to the next one in the same instant."""
HEARTBEAT_SECONDS = 10
SEND_TIMEOUT_SECONDS = 30
SENT_TOGETHER = 65_536
"""Bytes of frames that are there at the same time; sending costs more than a frame."""
_CURSOR = re.compile(r"(\d{1,15})((?:\.sevt_[0-9a-z]{26}\.\d{1,9})*)", re.ASCII)
_INSIDE = re.compile(r"\.(sevt_[0-9a-z]{26})\.(\d{1,9})", re.ASCII)
_HEADERS = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
PREVIEWED = frozenset({"agent.message", "agent.thinking"})


@dataclass(frozen=True)
class Start:
    """Where a stream begins: after a seq, perhaps inside texts that were being written."""

    seq: int
    sent: Mapping[str, int] = field(default_factory=dict[str, int])
    """Of which event the viewer has had how many characters."""


@dataclass(frozen=True)
class End:
    """What ends the stream of a run or a batch: its last event behind seq `after`. `seq` is that event's, where it is over."""

    after: int
    seq: int | None
    of: Mapping[str, str]
    """The member of `done` that says whose end it is."""
    status: str
    types: frozenset[str] = RUN_OVER_TYPES


def start_of(request: Request, after: str | None, last_seq: int, default: int) -> Start:
    """`Last-Event-ID`, else `?after=`, else `default`. Raises MalformedCursor for a foreign one or one beyond the end."""
    # The header first: a browser sends it when it reconnects by itself, to the address that it began with. And a page that
    # opens a new EventSource, with a fresh token, can say where it was in the address only.
    cursor = request.headers.get("last-event-id") or after
    if cursor is None:
        return Start(default)
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise MalformedCursor("`Last-Event-ID`, or `after`, is not an id of this stream.")
    start = Start(int(found[1]), {event_id: int(length) for event_id, length in _INSIDE.findall(found[2])})
    if not 0 <= start.seq <= last_seq:
        raise MalformedCursor(f"The cursor {start.seq} is beyond the end of the log, which is at {last_seq}.")
    return start


def viewer(
    request: Request,
    start: Start,
    *,
    run_id: str | None,
    types: list[str] | None,
    deltas: list[str] | None,
    primary: bool = False,
) -> Viewer:
    """What this caller wants to see."""
    sdk = is_sdk(request)
    by_default = frozenset[str]() if sdk else PREVIEWED
    return Viewer(
        after=start.seq,
        run_id=run_id,
        primary=primary,
        types=sdk_types(types) if sdk else None if types is None else frozenset(types),
        previews=by_default if deltas is None else PREVIEWED & frozenset(deltas),
        sent=dict(start.sent),
    )


def is_sdk(request: Request) -> bool:
    return "anthropic-beta" in request.headers


def stream(
    request: Request, service: Service, session_id: str, viewer: Viewer, last_seq: int, end: End | None = None
) -> EventSourceResponse:
    """The response. With `end` it ends with the run's last event and `event: done`; with the caller's key or token anyway."""
    caller: Principal = request.state.caller
    frames = _frames(service.tails, session_id, viewer, last_seq, end, sdk=is_sdk(request), hidden=hidden_from(caller))
    return EventSourceResponse(
        _while_admitted(service.admissions, caller, viewer, frames),
        ping=HEARTBEAT_SECONDS,
        ping_message_factory=lambda: ServerSentEvent(comment="hb"),
        send_timeout=SEND_TIMEOUT_SECONDS,
        headers=_HEADERS,
        sep="\n",
    )


async def _while_admitted(
    admissions: Admissions, caller: Principal, viewer: Viewer, frames: AsyncGenerator[bytes]
) -> AsyncIterator[bytes]:
    async with aclosing(frames):
        with admissions.ending(viewer, caller):
            async for frame in frames:
                yield frame
        if viewer.ended:
            # A browser that comes back by itself is refused, and then its page knows that it needs another token.
            yield f": the key or token is no longer good\nretry: {FAREWELL_RETRY_MS[0]}\n\n".encode()


async def _frames(
    tails: Tails,
    session_id: str,
    viewer: Viewer,
    last_seq: int,
    end: End | None,
    *,
    sdk: bool,
    hidden: frozenset[str],
) -> AsyncGenerator[bytes]:
    yield f"retry: {RETRY_MS}\n: connected\n\n".encode()
    if end is not None and end.seq is not None and viewer.after >= end.seq:
        # It has seen the last event and lost the connection before `done`: nothing would ever come.
        yield _done(viewer.after, end.of, end.status)
        return
    shown = viewer.types
    if shown is not None:
        viewer.types = shown | CLOSING  # the stream's own book-keeping needs them
    together = b""
    async with aclosing(tails.follow(session_id, viewer, last_seq)) as frames:
        async for frame in frames:
            if together and (frame is None or len(together) > SENT_TOGETHER):
                yield together
                together = b""
            if frame is None:
                continue
            if frame.seq is None:
                if frame.preview is None and not (shown is None or frame.type in shown):
                    continue
                if not (sdk and frame.type == "event_delta" and frame.preview and frame.preview.type == "agent.thinking"):
                    # The `anthropic` package knows deltas of text only: reasoning is announced to it and then comes whole.
                    together += _encode(viewer.cursor, frame.type, frame.data)
                continue
            if frame.type not in hidden and (shown is None or frame.type in shown):
                together += _encode(str(frame.seq), frame.type, frame.sdk_data if sdk else frame.data)
            if end is not None and frame.type in end.types and frame.seq > end.after:
                yield together + _done(frame.seq, end.of, frame.type.partition(".")[2])
                return
    if tails.leaving:
        together += f": server is going away\nretry: {random.randint(*FAREWELL_RETRY_MS)}\n\n".encode()
    if together:
        yield together


def _done(seq: int, of: Mapping[str, str], status: str) -> bytes:
    return _encode(str(seq), "done", json.dumps({"type": "done", **of, "status": status}))


def _encode(id: str, event: str, data: str) -> bytes:
    return f"id: {id}\nevent: {event}\ndata: {data}\n\n".encode()
