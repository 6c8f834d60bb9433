"""HTTP and SSE towards the service: problems become messages, and streams outlive their connections."""

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar
from uuid import uuid4

import httpx2
from pydantic import BaseModel, JsonValue, ValidationError

from commands.context import Failed
from domain.errors import Pointer

CONNECT_SECONDS = 5
ANSWER_SECONDS = 30
SILENCE_SECONDS = 25
"""The service sends a heartbeat every 10 s: after this long without a byte the connection is dead."""
PATIENCE_SECONDS = 600
"""How long a stream that has broken off is tried again: runs outlive restarts of the service."""
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 2.0
MAX_EVENT_BYTES = 64 * 1024 * 1024
ATTEMPTS = 3

M = TypeVar("M", bound=BaseModel)
Params = Mapping[str, str | int | list[str]]


class Unreachable(Failed):
    def __init__(self, url: str, why: str) -> None:
        super().__init__(
            f"No Perdure answers at {url} ({why}): start it with `make run` (or `perdure up`), "
            "or set PERDURE_URL to where one runs."
        )


class Problem(BaseModel):
    """What the service says when it refuses (RFC 9457)."""

    title: str
    detail: str = ""
    code: str | None = None
    errors: list[Pointer] = []


@dataclass(frozen=True)
class Frame:
    """One server-sent event. `id` is a cursor: a stream goes on behind it."""

    id: str
    event: str
    data: str

    @property
    def durable(self) -> bool:
        """Whether it is an event of the log, and not a preview or the end of the stream."""
        return self.event not in ("event_start", "event_delta", "done")

    def json(self) -> dict[str, JsonValue]:
        return json.loads(self.data)


class Connection:
    """Raises Unreachable when nothing answers and Failed when the service refuses."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx2.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
                # A proxy from the environment can never reach a service on this machine.
                mounts={"all://127.0.0.1": None, "all://localhost": None, "all://[::1]": None},
            )
        except httpx2.InvalidURL as error:
            raise Failed(f"PERDURE_URL is not a URL: {error}") from error
        if self._http.base_url.scheme not in ("http", "https") or not self._http.base_url.host:
            raise Failed(f"PERDURE_URL is not an http:// or https:// URL: {self.url}")

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, answer: type[M], params: Params | None = None) -> M:
        return _parse(answer, self._accepted(self._send("GET", path, params=params)))

    def post(self, path: str, answer: type[M], body: JsonValue = None) -> M:
        """Sent again with the same Idempotency-Key when the connection breaks: it happens once, or not at all."""
        return self._post(answer, lambda key: self._send("POST", path, body=body, key=key))

    def upload(self, path: str, answer: type[M], content: bytes, params: Params | None = None) -> M:
        """A POST of a JSON document as it is."""
        return self._post(answer, lambda key: self._send("POST", path, params=params, content=content, key=key))

    def download(self, path: str, params: Params | None = None) -> Generator[bytes]:
        """A body in pieces. One that broke off is no whole one: Unreachable."""
        try:
            with self._http.stream("GET", path, params=dict(params) if params else None) as response:
                if not response.is_success:
                    self._accepted(response)
                yield from response.iter_bytes()
        except httpx2.TransportError as error:
            raise Unreachable(self.url, _why(error)) from error

    def _post(self, answer: type[M], send: "Callable[[str], httpx2.Response]") -> M:
        key = str(uuid4())
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return _parse(answer, self._accepted(send(key)))
            except _Broken as broken:
                if attempt == ATTEMPTS:
                    raise Unreachable(self.url, str(broken)) from broken
            except Failed as refused:
                if refused.code != "idempotency_in_flight" or attempt == ATTEMPTS:
                    raise
            time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def delete(self, path: str) -> None:
        self._accepted(self._send("DELETE", path))

    def lines(self, path: str) -> Iterator[str]:
        """Of an answer that may be long."""
        try:
            with self._http.stream("GET", path) as response:
                if not response.is_success:
                    self._accepted(response)
                rest = b""
                for piece in response.iter_bytes():  # not iter_lines, to which U+2028 ends a line
                    *whole, rest = (rest + piece).split(b"\n")
                    yield from (line.decode() for line in whole)
        except httpx2.TransportError as error:
            raise Unreachable(self.url, _why(error)) from error

    def probe(self, path: str) -> tuple[int, str]:
        """Status and body of a GET, whatever they are."""
        response = self._send("GET", path)
        return response.status_code, response.text

    def stream(
        self, path: str, dropped: Callable[[str], None], *, cursor: str | None = None, after: int | None = None
    ) -> Generator[Frame]:
        """Follow a stream to its `done`, or for ever. After a break it goes on behind the last frame, without gap or repeat.

        `cursor` is a Frame's id, `after` a seq to begin behind. `dropped` hears why a connection broke, once a break. Close it.
        """
        heard, wait = time.monotonic(), FIRST_WAIT_SECONDS
        params = None if after is None else {"after": after}
        while True:
            opened: float | None = None
            try:
                with self._http.sse(
                    path,
                    params=params,
                    headers={"Last-Event-ID": cursor} if cursor else {},
                    timeout=httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
                    max_event_size=MAX_EVENT_BYTES,
                ) as source:
                    if source.response.status_code in (429, 500, 502, 503, 504):
                        why = f"it answered {source.response.status_code}"
                    else:
                        self._accepted(source.response)
                        opened = time.monotonic()
                        for event in source:
                            if not event.data:
                                continue  # `retry:` and comments
                            heard, wait = time.monotonic(), FIRST_WAIT_SECONDS
                            cursor = event.id or cursor
                            yield Frame(event.id, event.event, event.data)
                            if event.event == "done":
                                return
                        why = "the stream broke off"
            except httpx2.TransportError as error:
                why = _why(error)
            if opened is not None and time.monotonic() - opened > LONGEST_WAIT_SECONDS:
                heard, wait = time.monotonic(), FIRST_WAIT_SECONDS  # it stood until now, though a run that waits says nothing
            if time.monotonic() - heard > PATIENCE_SECONDS:
                raise Unreachable(self.url, why)
            if wait == FIRST_WAIT_SECONDS:
                dropped(why)
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT_SECONDS)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: JsonValue = None,
        content: bytes | None = None,
        key: str | None = None,
    ) -> httpx2.Response:
        headers = {"Idempotency-Key": key} if key else {}
        if content is not None:
            headers["Content-Type"] = "application/json"
        query = dict(params) if params else None
        try:
            return self._http.request(method, path, params=query, json=body, content=content, headers=headers)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unreachable(self.url, _why(error)) from error
        except httpx2.TransportError as error:
            raise _Broken(self.url, _why(error)) from error

    def _accepted(self, response: httpx2.Response) -> bytes:
        """The body of a good answer; raises Failed with the problem of any other."""
        if response.is_success:
            # A stream's body is read by whoever follows it.
            return b"" if response.headers.get("content-type", "").startswith("text/event-stream") else response.read()
        body = response.read()
        try:
            problem = Problem.model_validate_json(body)
        except ValidationError:
            problem = Problem(title=f"{self.url} answered {response.status_code}", detail=response.text[:200])
        lines = [f"{problem.title}: {problem.detail}" if problem.detail else problem.title]
        lines += [f"  {fault.pointer}: {fault.detail}" for fault in problem.errors if fault.detail not in problem.detail]
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            lines.append("Set PERDURE_API_KEY, or run the command where `perdure up` keeps its data folder (PERDURE_DATA_DIR).")
        raise Failed("\n".join(lines), problem.code)


class _Broken(Unreachable):
    """The connection broke after it stood: whether the request arrived is not known."""


def _parse(answer: type[M], body: bytes) -> M:
    try:
        return answer.model_validate_json(body)
    except ValidationError as error:
        raise Failed(f"The service answered what this command line does not understand: {error}") from error


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
