"""A model on the loopback that takes no request above its window, checks each as the strictest vendor does, and caches.

It speaks Anthropic's and OpenAI's API. What it says follows from the request: asked to summarise, it keeps what looks like a
fact (`fact-…`); asked for a title, it names the facts; asked to `recall`, it says the facts that it sees; asked to `look`, it
calls the tool `look` first.
A cache read is what a request has in common with an earlier one, whole messages only, as at a vendor.
"""

import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

FACT = re.compile(r"fact-\w+")


def tokens(value: object) -> int:
    return len(json.dumps(value, ensure_ascii=False)) // 4


@dataclass
class StrictModel:
    """`window`: in tokens, of four characters of JSON. `broken`: how a summary fails, if it does."""

    url: str = ""
    window: int = 1_000_000
    broken: str | None = None
    lists: bool = True
    """Says in its list of models what it takes."""
    in_turn: bool = False
    """Looks at one after the other in one turn, as far as the request says that it has."""
    bodies: list[Json] = field(default_factory=list[Json])
    """Every request that was answered, summaries too."""
    faults: list[str] = field(default_factory=list[str])
    """What a strict vendor would have refused."""
    rejected: int = 0
    """Requests above the window."""
    summaries: int = 0
    asked: threading.Event = field(default_factory=threading.Event)
    """A summary is asked for. `release`: it may be answered, where `broken` is `held`."""
    release: threading.Event = field(default_factory=threading.Event)
    _looked: int = 0
    _cache: set[str] = field(default_factory=set[str])

    def forget(self) -> None:
        self.bodies, self.faults = [], []
        self.rejected = self.summaries = 0
        self.broken, self.in_turn = None, False
        self.asked.clear()
        self.release.clear()
        self._cache.clear()
        self._looked = 0

    def answer(self, body: Json, claude: bool) -> tuple[int, Json]:
        """Status, and of an answer: text, tool, usage."""
        parts = _parts(body, claude)
        size = sum(tokens(part) for part in parts)
        if size > self.window:
            self.rejected += 1
            return 400, {"error": f"prompt is too long: {size} tokens > {self.window} maximum"}
        messages: list[Json] = body["messages"]
        self.faults += _claude_faults(messages) if claude else _openai_faults(messages)
        self.bodies.append(body)
        cached = self._cached(parts)
        system = str(body.get("system") if claude else messages[0].get("content"))
        if "summarise" in system:
            self.summaries += 1
            return self._summary(body, size)
        seen = json.dumps(messages[-1]["content"])
        facts = sorted(set(FACT.findall(json.dumps(messages))))
        if "titles" in system:
            return 200, {"text": f'"About {" ".join(facts)}"', "input": size - cached, "cached": cached}
        said: Json = {"text": f"I see {len(facts)} facts."}
        if self.in_turn:
            wants = re.findall(r"look at (\S+?)[.\"\\]", json.dumps(messages))
            names = list(dict.fromkeys(wants))[self._looked :]
            self._looked += bool(names)
        else:
            answered = "result" in str(_kinds(messages[-1]))
            names = [] if answered else re.findall(r"look at (\S+?)[.\"\\]", seen)
        if names:
            said = {"text": "Let me look.", "tool": {"file_path": names[0]}}
        elif "recall" in seen:
            said = {"text": " ".join(facts) or "nothing"}
        return 200, {**said, "input": size - cached, "cached": cached}

    def _summary(self, body: Json, size: int) -> tuple[int, Json]:
        self.asked.set()
        match self.broken:
            case "500":
                return 500, {"error": "no"}
            case "400":
                return 400, {"error": "no"}
            case "empty":
                return 200, {"text": "", "input": size, "cached": 0}
            case "held":
                self.release.wait(30)
            case _:
                pass
        facts = sorted(set(FACT.findall(json.dumps(body["messages"]))))
        return 200, {"text": "Facts: " + " ".join(facts), "input": size, "cached": 0}

    def _cached(self, parts: list[object]) -> int:
        prefixes = ["\n".join(json.dumps(part) for part in parts[: at + 1]) for at in range(len(parts))]
        hits = [at for at, prefix in enumerate(prefixes) if prefix in self._cache]
        self._cache.add(prefixes[-1])
        return sum(tokens(part) for part in parts[: hits[-1] + 1]) if hits else 0


def _parts(body: Json, claude: bool) -> list[object]:
    """What a prefix cache is made of, in its order."""
    first = [body.get("tools"), body.get("system")] if claude else [body.get("tools")]
    return [first, *body["messages"]]


def _kinds(message: Json) -> list[str]:
    content = message["content"]
    return (
        [message["role"] + " result"]
        if message["role"] == "tool"
        else (["text"] if isinstance(content, str) else [block["type"] for block in content])
    )


def _claude_faults(messages: list[Json]) -> list[str]:
    roles = [message["role"] for message in messages]
    faults = [f"roles: {roles}"] if roles != [("user", "assistant")[at % 2] for at in range(len(roles))] else []
    faults += ["the last message is not the user's"] if roles[-1:] != ["user"] else []
    before: list[str] = []
    for message in messages:
        uses = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        results = [block["tool_use_id"] for block in message["content"] if block["type"] == "tool_result"]
        if message["role"] == "user" and sorted(results) != sorted(before):
            faults.append(f"uses {before}, results {results}")
        before = uses
    return faults


def _openai_faults(messages: list[Json]) -> list[str]:
    faults: list[str] = []
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                faults.append(f"a result without its call: {message['tool_call_id']}")
            else:
                waiting.remove(message["tool_call_id"])
            continue
        if waiting:
            faults.append(f"calls without results: {waiting}")
        waiting = [call["id"] for call in message.get("tool_calls") or ()]
    return faults + ([f"calls without results: {waiting}"] if waiting else [])


def _claude_frames(said: Json) -> list[Json]:
    usage = {"input_tokens": said["input"], "cache_read_input_tokens": said["cached"], "output_tokens": 1}
    message: Json = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "strict", "stop_reason": None,
               "stop_sequence": None, "usage": usage}  # fmt: skip
    frames: list[Json] = [{"type": "message_start", "message": message}]
    if said["text"]:
        frames += [
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": said["text"]}},
            {"type": "content_block_stop", "index": 0},
        ]
    if "tool" in said:
        use = {"type": "tool_use", "id": f"toolu_{id(said)}", "name": "read", "input": said["tool"]}
        frames += [
            {"type": "content_block_start", "index": 1, "content_block": use},
            {"type": "content_block_stop", "index": 1},
        ]
    stop = "tool_use" if "tool" in said else "end_turn"
    output = {"output_tokens": tokens(said["text"]) + tokens(said.get("tool"))}
    return [*frames, {"type": "message_delta", "delta": {"stop_reason": stop, "stop_sequence": None}, "usage": output},
            {"type": "message_stop"}]  # fmt: skip


def _openai_frames(said: Json) -> list[Json]:
    delta: Json = {"role": "assistant", "content": said["text"]}
    if "tool" in said:
        function = {"name": "read", "arguments": json.dumps(said["tool"])}
        delta["tool_calls"] = [{"index": 0, "id": f"call_{id(said)}", "type": "function", "function": function}]
    usage = {"prompt_tokens": said["input"] + said["cached"], "completion_tokens": tokens(said["text"]),
             "total_tokens": 0, "prompt_tokens_details": {"cached_tokens": said["cached"]}}  # fmt: skip
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "strict"}
    stop = "tool_calls" if "tool" in said else "stop"
    return [
        {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": stop}], "usage": usage},
    ]


@contextmanager
def strict_model(window: int = 1_000_000) -> Generator[StrictModel]:
    model = StrictModel(window=window)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            """The list of models, which says how much they take."""
            claude = {"type": "model", "id": "strict", "display_name": "Strict", "created_at": "2026-01-01T00:00:00Z"}
            listed = {**claude, "object": "model", "created": 1, "owned_by": "us"}
            listed |= {"max_input_tokens": model.window, "max_tokens": 1000, "max_model_len": model.window}
            models = {"object": "list", "data": [listed] if model.lists else [], "has_more": False}
            bare = self.path.startswith("/bare/")  # as some servers of OpenAI's API have it
            self._send(200, "application/json", json.dumps(models["data"] if bare else models))

        def do_POST(self) -> None:
            body: Json = json.loads(self.rfile.read(int(self.headers["content-length"])))
            claude = self.path.endswith("/messages")
            status, said = model.answer(body, claude)
            if status != 200:
                error = {"type": "invalid_request_error" if status == 400 else "api_error", "message": said["error"]}
                self._send(status, "application/json", json.dumps({"type": "error", "error": error}))
                return
            frames = _claude_frames(said) if claude else _openai_frames(said)
            lines = "".join(
                (f"event: {frame['type']}\n" if claude else "") + f"data: {json.dumps(frame)}\n\n" for frame in frames
            )
            self._send(200, "text/event-stream", lines + ("" if claude else "data: [DONE]\n\n"))

        def _send(self, status: int, kind: str, text: str) -> None:
            try:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())
            except ConnectionError:
                pass  # whoever asked was stopped

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        model.release.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
