"""A loopback HTTP server that speaks both vendors' streams, well or badly: the first part of the path says how.

`{url}/stall/v1/messages` begins to answer and falls silent, `{url}/429/v1/chat/completions` refuses, and so on. What
`play` was given is answered as it is. Under `{url}/once` and `{url}/always` the model's name says how: the first call of each
model only, or every call.
"""

import asyncio
import json
import threading
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from pydantic import JsonValue

Frame = dict[str, JsonValue]

ANTHROPIC_OPENING: list[Frame] = [
    {"type": "message_start", "message": {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "m-1",
     "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 5, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Half an"}},
]  # fmt: skip
OPENAI_OPENING: list[Frame] = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
     "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Half an"}, "finish_reason": None}]},
]  # fmt: skip
ANTHROPIC_REST: list[Frame] = [
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " answer, and the rest."}},
    {"type": "content_block_stop", "index": 0},
]  # fmt: skip
ANTHROPIC_CLOSING: list[Frame] = [
    {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 7}},
    {"type": "message_stop"},
]
OPENAI_REST: list[Frame] = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
     "choices": [{"index": 0, "delta": {"content": " answer, and the rest."}, "finish_reason": None}]},
]  # fmt: skip
OPENAI_CLOSING: list[Frame] = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
     "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
     "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}},
]  # fmt: skip
WHOLE = "Half an answer, and the rest."
ANTHROPIC_ARGUMENTS: list[Frame] = [
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1,
     "content_block": {"type": "tool_use", "id": "toolu_half", "name": "read", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"file_path": "a'}},
]  # fmt: skip
OPENAI_ARGUMENTS: list[Frame] = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m-1",
     "choices": [{"index": 0, "finish_reason": None, "delta": {"tool_calls": [
         {"index": 0, "id": "call_half", "type": "function",
          "function": {"name": "read", "arguments": '{"file_path": "a'}}]}}]},
]  # fmt: skip

STATUSES: dict[str, tuple[int, str, str]] = {
    "400": (400, "", "invalid_request_error"),
    "401": (401, "", "authentication_error"),
    "403": (403, "", "permission_error"),
    "404": (404, "", "not_found_error"),
    "408": (408, "", "timeout_error"),
    "409": (409, "", "conflict_error"),
    "429": (429, "Retry-After: 7\r\n", "rate_limit_error"),
    "429-ms": (429, "retry-after-ms: 1500\r\nRetry-After: 7\r\n", "rate_limit_error"),
    "429-date": (429, "Retry-After: Fri, 31 Dec 2099 23:59:59 GMT\r\n", "rate_limit_error"),
    "429-second": (429, "Retry-After: 1\r\n", "rate_limit_error"),
    "429-soon": (429, "", "rate_limit_error"),
    "429-day": (429, "Retry-After: 86400\r\n", "rate_limit_error"),
    "429-absurd": (429, "Retry-After: 1e300\r\n", "rate_limit_error"),
    "429-nonsense": (429, "Retry-After: soon\r\n", "rate_limit_error"),
    "500": (500, "", "api_error"),
    "503": (503, "Retry-After: 3\r\n", "api_error"),
    "529": (529, "", "overloaded_error"),
}


@dataclass
class FaultyServer:
    """`closed` is set when a client lets go of a connection that was still being answered."""

    url: str = ""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    bodies: list[dict[str, JsonValue]] = field(default_factory=list[dict[str, JsonValue]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    calls: Counter[str] = field(default_factory=Counter[str])
    """Under `once` and `always`, by path and model."""
    models: set[str] = field(default_factory=set[str])
    """Those that were called, and the paths of requests for none. `left`: those whose caller hung up in mid-answer."""
    left: set[str] = field(default_factory=set[str])
    _refused: dict[str, tuple[int, str, str]] = field(default_factory=dict[str, tuple[int, str, str]])
    _played: dict[str, Sequence[Frame]] = field(default_factory=dict[str, Sequence[Frame]])

    def play(self, *frames: Frame) -> str:
        """Answer with exactly these frames; returns the base path to call."""
        name = f"played-{len(self._played)}"
        self._played[name] = frames
        return f"{self.url}/{name}"

    def refuse(self, status: int, kind: str, message: str) -> str:
        """Answer with this refusal; returns the base path to call."""
        name = f"refused-{len(self._refused)}"
        self._refused[name] = status, kind, message
        return f"{self.url}/{name}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Returns whether the connection goes on."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        request_line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.bodies.append(json.loads(body) if body else {})
        self.headers.append(headers)
        path = request_line.split(" ")[1]
        scenario = path.split("/")[1]
        claude = path.endswith("/messages")
        name = str(self.bodies[-1].get("model", path))
        self.models.add(name)
        if scenario in ("once", "always"):
            model = name.partition("~")[0]  # behind it, what tells calls apart
            call = f"{path} {name}"
            self.calls[call] += 1
            scenario = "well" if scenario == "once" and self.calls[call] > 1 else model

        if refused := self._refused.get(scenario):
            status, kind, message = refused
            text = json.dumps({"type": "error", "error": {"type": kind, "code": None, "message": message}})
            head = f"content-type: application/json\r\ncontent-length: {len(text)}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n{text}".encode())
            return True
        if scenario in STATUSES:
            status, extra, kind = STATUSES[scenario]
            if scenario == "429-soon":
                extra = f"Retry-After: {format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)}\r\n"
            # Echoes the key, as some vendors do.
            key = headers.get("x-api-key", "") or headers.get("authorization", "").removeprefix("Bearer ")
            error = {"type": "error", "error": {"type": kind, "code": None, "message": f"no good: {key}"}}
            text = json.dumps(error)
            extra += f"content-type: application/json\r\ncontent-length: {len(text)}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}\r\n{text}".encode())
            return True
        if scenario == "silent":
            self.answering.set()
            return await self._wait_for_close(reader, name)
        if scenario == "hangup":
            return False

        opening, rest, closing, arguments = _CLAUDE if claude else _OPENAI
        if scenario in ("page", "json", "gzip-cut", "gzip-bad", "empty"):
            return _answer_oddly(writer, scenario, opening, [*rest, *closing])

        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        if scenario == "headers":
            await writer.drain()
            return await self._wait_for_close(reader, name)
        for frame in self._played.get(scenario, opening):
            _chunk(writer, _sse(frame))
        await writer.drain()
        self.answering.set()
        match scenario:
            case "stall":
                return await self._wait_for_close(reader, name)
            case "drip":
                closing = asyncio.create_task(self._wait_for_close(reader, name))
                while not closing.done():
                    _chunk(writer, b": still here\n\n")
                    await asyncio.sleep(0.02)
                return False
            case "disconnect":
                writer.write(b"40\r\ndata: {")
                await writer.drain()
                return False
            case "malformed":
                _chunk(writer, b'event: content_block_delta\ndata: {"type": "content_block\n\n')
            case "well":
                for frame in (*rest, *closing):
                    _chunk(writer, _sse(frame))
            case "unstopped":
                for frame in rest:
                    _chunk(writer, _sse(frame))
            case "half-arguments":
                for frame in arguments:
                    _chunk(writer, _sse(frame))
            case "error-event":
                # The words of overload, from both vendors; the key in it as in the refusals above.
                key = headers.get("x-api-key", "") or headers.get("authorization", "").removeprefix("Bearer ")
                overload: Frame = {"type": "overloaded_error", "message": f"overloaded: {key}"}
                _chunk(writer, _sse({"type": "error", "error": overload} if claude else {"error": overload}))
            case "wrong-shape":
                odd: Frame = (
                    {"type": "content_block_delta", "index": 0, "delta": None} if claude else {"choices": [{"delta": 1}]}
                )
                _chunk(writer, _sse(odd))
            case "no-object":
                _chunk(writer, b"event: content_block_delta\ndata: 17\n\n")
            case "lingering" | "broken-late":
                for frame in (*rest, *closing[:1]):
                    _chunk(writer, _sse(frame))
                await writer.drain()
                return scenario == "lingering" and await self._wait_for_close(reader, name)
            case "bad-usage":
                for frame in rest:
                    _chunk(writer, _sse(frame))
                odd = {"input_tokens": "many", "output_tokens": -1, "prompt_tokens": "many", "completion_tokens": -1}
                for frame in closing:
                    _chunk(writer, _sse({**frame, "usage": odd}))
            case "notutf8":
                _chunk(writer, b"event: content_block_delta\ndata: \xff\xfe\n\n")
            case _:
                pass
        if scenario != "truncated" and not claude:
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _wait_for_close(self, reader: asyncio.StreamReader, name: str) -> bool:
        with suppress(ConnectionError):  # a client that leaves in mid-answer resets the connection
            await reader.read()
        self.closed.set()
        self.left.add(name)
        return False


_CLAUDE = ANTHROPIC_OPENING, ANTHROPIC_REST, ANTHROPIC_CLOSING, ANTHROPIC_ARGUMENTS
_OPENAI = OPENAI_OPENING, OPENAI_REST, OPENAI_CLOSING, OPENAI_ARGUMENTS


def _answer_oddly(writer: asyncio.StreamWriter, scenario: str, opening: Sequence[Frame], rest: Sequence[Frame]) -> bool:
    """With status 200 and no stream in it, or half of a compressed one."""
    packing = zlib.compressobj(wbits=31)
    packed = packing.compress(b"".join(map(_sse, opening))) + packing.flush(zlib.Z_SYNC_FLUSH)
    more = packing.compress(b"".join(map(_sse, rest))) + packing.flush()
    head, body = {
        "page": ("content-type: text/html\r\n", b"<html>Please sign in to the guest network</html>"),
        "json": ("content-type: application/json\r\n", b'{"ok": true}'),
        "empty": ("content-type: text/event-stream\r\n", b""),
        "gzip-cut": ("content-type: text/event-stream\r\ncontent-encoding: gzip\r\n", packed + more[: len(more) // 4]),
        "gzip-bad": ("content-type: text/event-stream\r\ncontent-encoding: gzip\r\n", packed + b"\xff" * 40),
    }[scenario]
    writer.write(f"HTTP/1.1 200 OK\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return True


def _sse(frame: Frame) -> bytes:
    event = f"event: {frame['type']}\n" if "type" in frame else ""
    return f"{event}data: {json.dumps(frame)}\n\n".encode()


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@asynccontextmanager
async def faulty_server() -> AsyncGenerator[FaultyServer]:
    faulty = FaultyServer()
    server = await asyncio.start_server(faulty.handle, "127.0.0.1", 0)
    faulty.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield faulty
    finally:
        server.close()


@contextmanager
def faulty_thread() -> Generator[FaultyServer]:
    """The same in a thread of its own, for tests that have no event loop."""
    ready: Future[FaultyServer] = Future()
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with faulty_server() as server:
            ready.set_result(server)
            await stop.wait()

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    try:
        yield ready.result(10)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
