"""A service that does as it is told: one scripted answer per request, over real sockets."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`cut`: close the connection after the body, and a pause, although more was promised. Status 0: close it without an
    answer."""

    body: str
    status: int = 200
    type: str = "application/json"
    cut: bool = False
    pause: float = 0


@dataclass
class Loopback:
    url: str
    answers: list[Answer]
    asked: list[Asked] = field(default_factory=list[Asked])


@contextmanager
def loopback(*answers: Answer) -> Generator[Loopback]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            scripted.asked.append(Asked(self.command, self.path, headers, body))
            answer = scripted.answers.pop(0)
            self.close_connection = True
            if answer.status == 0:
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.type)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Connection", "close")  # else the client may take it for its next request, while it closes
            self.end_headers()
            # Small pieces: a frame must survive being torn anywhere.
            data = answer.body.encode()
            for start in range(0, len(data), 7):
                piece = data[start : start + 7]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            time.sleep(answer.pause)
            if not answer.cut:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    scripted = Loopback(f"http://127.0.0.1:{server.server_port}", list(answers))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def frame(id: str, event: str, data: str) -> str:
    return f"id: {id}\nevent: {event}\ndata: {data}\n\n"


def stream(*frames: str, cut: bool = False, tail: str = "") -> Answer:
    """An event stream; `tail` is the beginning of a frame that is torn."""
    return Answer("retry: 2000\n: connected\n\n" + "".join(frames) + tail, type="text/event-stream; charset=utf-8", cut=cut)
