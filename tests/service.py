"""The real service for tests: its own thread and event loop, a real Temporal, a real database, HTTP on loopback."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import uvicorn
from temporalio.client import Client

from api.app import create_app
from commands.bootstrap import bootstrap
from commands.serve import KEEP_ALIVE_SECONDS
from commands.temporal_server import temporal_server
from domain.keys import SCOPES, new_key
from settings import Settings
from storage.keys import Keys
from storage.schema import migrate
from tests.ports import free_port
from worker import Parts, connect, parts, working
from workflows.client import RunClient

T = TypeVar("T")

OVER = ("run.completed", "run.failed", "run.cancelled", "run.terminated")


class ServiceThread:
    """API and worker in one thread; `call` runs a coroutine inside it."""

    def __init__(
        self,
        data: Path,
        database_url: str | None,
        config: Path | None = None,
        temporal: str | None = None,
        dynamic: tuple[str, ...] = (),
        cors_origins: tuple[str, ...] = (),
    ) -> None:
        self.settings = Settings(
            data_dir=data,
            database_url=database_url,
            port=free_port(),
            temporal_port=free_port(),
            temporal_ui_port=free_port(),
            task_queue=f"test-{uuid4().hex[:8]}",
            config=config or data / "perdure.toml",
            cors_origins=cors_origins,
        )
        self.url = f"http://127.0.0.1:{self.settings.port}"
        self.temporal_address = temporal or f"127.0.0.1:{self.settings.temporal_port}"
        self.parts: Parts
        self.temporal: Client
        self._temporal = temporal
        self._dynamic = dynamic
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def __enter__(self) -> "ServiceThread":
        self._thread.start()
        self._ready.result(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def workspace(self, scopes: tuple[str, ...] = SCOPES) -> "Workspace":
        """A fresh workspace with a key of its own: tests share the service and nothing else."""
        return Workspace(self, self.call(self._new_key(scopes)))

    async def _new_key(self, scopes: tuple[str, ...], workspace_id: str | None = None) -> str:
        key = new_key()
        async with self.parts.database.write() as transaction:
            keys = Keys(transaction.connection)
            await keys.add(workspace_id or await keys.create_workspace("test"), "test", key, scopes)
        return key

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except Exception as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _serve(self) -> None:
        data = self.settings.data_dir
        data.mkdir(parents=True, exist_ok=True)
        async with self._temporal_server(), parts(self.settings) as self.parts:
            await migrate(self.parts.database.engine)
            await bootstrap(self.parts, data)
            client = self.temporal = await connect(self.settings, self.temporal_address)
            runs = RunClient(client, self.settings.task_queue)
            app = create_app(
                database=self.parts.database,
                live=self.parts.live,
                client=runs,
                providers=self.parts.providers,
                tools=self.parts.tools,
                mcp=self.parts.mcp,
                secrets=self.parts.secrets,
                files=self.parts.files,
                routes=self.parts.routes,
                temporal_ui="http://temporal.internal",
                cors_origins=self.settings.cors_origins,
            )
            config = uvicorn.Config(
                app,
                port=self.settings.port,
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=1,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
            server = _Server(config)
            async with working(self.parts, client):
                serving = asyncio.create_task(server.serve())
                while not server.started:
                    await asyncio.sleep(0.01)
                self._ready.set_result(None)
                await self._stop.wait()
                server.should_exit = True
                await serving

    @asynccontextmanager
    async def _temporal_server(self) -> AsyncGenerator[None]:
        if self._temporal is not None:
            yield
            return
        async with temporal_server(self.settings.data_dir, self.settings.temporal_port, None, dynamic=self._dynamic):
            yield


class _Server(uvicorn.Server):
    def install_signal_handlers(self) -> None:
        pass


TLS = httpx2.create_ssl_context()
"""Made once: each client would read the certificates anew, which takes 20 ms, and none of ours needs them."""


@dataclass
class Frame:
    """One server-sent event as it came over the wire."""

    id: str
    event: str
    data: dict[str, Any]


class Workspace:
    """A workspace's view of the service, over HTTP."""

    def __init__(self, service: ServiceThread, key: str) -> None:
        self.service = service
        self.key = key
        self.http = httpx2.Client(base_url=service.url, headers={"Authorization": f"Bearer {key}"}, timeout=30, verify=TLS)

    def __enter__(self) -> "Workspace":
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def post_at_once(self, path: str, bodies: Sequence[Mapping[str, Any]], **more: Any) -> list[httpx2.Response]:
        """Each over a connection of its own, and all from one thread: the service, which is in this process, has to run too."""

        async def send() -> list[httpx2.Response]:
            limits = httpx2.Limits(max_connections=len(bodies))
            settings: Any = {"base_url": self.service.url, "headers": self.http.headers, "limits": limits, "verify": TLS}
            async with httpx2.AsyncClient(timeout=60, **settings) as http:
                return await asyncio.gather(*(http.post(path, json=body, **more) for body in bodies))

        return asyncio.run(send())

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, expect: int | None = None, **more: Any
    ) -> dict[str, Any]:
        response = self.http.post(path, json=body or {}, **more)
        assert response.status_code == (expect or response.status_code), response.text
        assert expect is not None or response.is_success, response.text
        return response.json()

    def get(self, path: str, *, expect: int = 200, **params: Any) -> dict[str, Any]:
        response = self.http.get(path, params=params)
        assert response.status_code == expect, response.text
        return response.json()

    def agent(self, **members: Any) -> dict[str, Any]:
        return self.post("/v1/agents", {"name": f"a-{uuid4().hex[:6]}", "model": "demo:script", **members})

    def start(self, *steps: Mapping[str, Any], text: str | None = None, **members: Any) -> "RunView":
        """Start a run whose model answers from the given script steps (or takes `text` as its input)."""
        agent = members.pop("agent", None) or self.agent(tools=members.pop("tools", []))["id"]
        body = {"agent": agent, "input": text or json.dumps({"script": list(steps)}), **members}
        return RunView(self, self.post("/v1/runs", body, expect=201)["id"])

    def stream(
        self,
        path: str,
        *,
        last_event_id: str | None = None,
        until: Callable[[Frame], bool] | None = None,
        **params: Any,
    ) -> list[Frame]:
        """Read a stream until `until`, or to its end."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        frames: list[Frame] = []
        with self.http.stream("GET", path, params=params, headers=headers) as response:
            assert response.status_code == 200, response.read()
            for frame in parse(response.iter_lines()):
                frames.append(frame)
                if until is not None and until(frame):
                    break
        return frames


class RunView:
    """One run, over HTTP."""

    def __init__(self, workspace: Workspace, run_id: str) -> None:
        self._workspace = workspace
        self.id = run_id

    @property
    def row(self) -> dict[str, Any]:
        return self._workspace.get(f"/v1/runs/{self.id}")

    def wait(self, seconds: float = 30) -> dict[str, Any]:
        """The run once it is over; fails when it is not within `seconds`."""
        asked = {"timeout_seconds": seconds}
        answer = self._workspace.http.get(f"/v1/runs/{self.id}/wait", params=asked, timeout=seconds + 30)
        assert answer.status_code == 200, answer.text
        row: dict[str, Any] = answer.json()
        assert row["finished_at"] is not None, row
        return row

    def until(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 15) -> dict[str, Any]:
        """Poll the row until `condition` holds, the less often the longer it takes: others need the processor too."""
        began = time.monotonic()
        while not condition(row := self.row):
            waited = time.monotonic() - began
            assert waited < seconds, row
            time.sleep(min(max(0.02, waited / 10), 0.5))
        return row

    def command(self, name: str, body: Mapping[str, Any] | None = None, expect: int = 202) -> dict[str, Any]:
        return self._workspace.post(f"/v1/runs/{self.id}/{name}", body, expect=expect)

    def events(self) -> list[dict[str, Any]]:
        return self._workspace.get(f"/v1/runs/{self.id}/events", limit=1000)["data"]

    def types(self) -> list[str]:
        return [event["type"] for event in self.events()]

    def stream(self, **options: Any) -> list[Frame]:
        return self._workspace.stream(f"/v1/runs/{self.id}/events/stream", **options)


def is_delta(frame: Frame) -> bool:
    """Whether it is a piece of text being written."""
    return frame.event == "event_delta"


def parse(lines: Iterable[str]) -> Iterator[Frame]:
    """Server-sent events out of lines; comments are dropped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Frame(fields.get("id", ""), fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}
