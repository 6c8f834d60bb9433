"""A loopback HTTP server that speaks both vendors' streams, well or badly: the first part of the path says how.

`{url}/stall/v1/messages` begins to answer and falls silent, `{url}/429/v1/chat/completions` refuses, and so on. What
`play` was given is answered as it is.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

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
    _played: dict[str, Sequence[Frame]] = field(default_factory=dict[str, Sequence[Frame]])

    def play(self, *frames: Frame) -> str:
        """Answer with exactly these frames; returns the base path to call."""
        name = f"played-{len(self._played)}"
        self._played[name] = frames
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

        if scenario in STATUSES:
            status, extra, kind = STATUSES[scenario]
            # Echoes the key, as some vendors do.
            key = headers.get("authorization", "").removeprefix("Bearer ")
            error = {"type": "error", "error": {"type": kind, "code": None, "message": f"no good: {key}"}}
            text = json.dumps(error)
            extra += f"content-type: application/json\r\ncontent-length: {len(text)}\r\n"
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}\r\n{text}".encode())
            return True
        if scenario == "silent":
            self.answering.set()
            return await self._wait_for_close(reader)
        if scenario == "hangup":
            return False

        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for frame in self._played.get(scenario, ANTHROPIC_OPENING if claude else OPENAI_OPENING):
            _chunk(writer, _sse(frame))
        await writer.drain()
        self.answering.set()
        match scenario:
            case "stall":
                return await self._wait_for_close(reader)
            case "drip":
                closing = asyncio.create_task(self._wait_for_close(reader))
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
            case "notutf8":
                _chunk(writer, b"event: content_block_delta\ndata: \xff\xfe\n\n")
            case _:
                if scenario != "truncated" and not claude:
                    _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return True

    async def _wait_for_close(self, reader: asyncio.StreamReader) -> bool:
        await reader.read()
        self.closed.set()
        return False


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
