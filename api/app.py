"""The HTTP application: middleware, routes, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import errors
from api.admission import Admissions
from api.routes import (
    agents,
    approvals,
    artifacts,
    batches,
    bulk,
    catalog,
    client_tokens,
    events,
    exports,
    files,
    forks,
    health,
    imports,
    keys,
    queues,
    resources,
    runs,
    sessions,
    streams,
    threads,
)
from api.services.answers import AnswerService
from api.services.catalog import Catalog
from api.services.contents import ContentService
from api.services.runs import RunService
from api.services.sessions import SessionService
from api.state import Service
from api.tail import Tails
from domain.ids import new_id
from domain.secrets import Secrets
from live.bus import LiveBus
from providers.registry import Providers
from storage.database import Database
from storage.starts import Route
from tools.mcp.source import McpTools
from tools.registry import Tools
from tools.store import FileStore
from workflows.client import RunClient

DESCRIPTION = "AI agents that do not die: every run is a Temporal workflow, every viewer sees the same gap-free story."

EXPOSED = ("Request-Id", "Location", "Content-Location", "Retry-After", "Idempotent-Replayed")
"""Headers that pages of other origins may read."""

_MODULES = (
    *(health, imports, agents, streams, forks, exports, sessions, client_tokens, queues, threads, events, resources, artifacts),
    *(runs, batches, bulk, approvals, files, catalog, keys),
)
ROUTERS = (files.uploads, batches.streams, *(module.router for module in _MODULES))


class RequestId:
    """Gives every answer a `Request-Id`. Plain ASGI: a wrapper that buffers would hold back streams."""

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Request-Id"] = request_id
                if self._leaving():
                    headers["Connection"] = "close"  # the next request goes to a process that stays
            await send(message)

        await self._app(scope, receive, with_id)


def create_app(
    *,
    database: Database,
    live: LiveBus,
    client: RunClient,
    providers: Providers,
    tools: Tools,
    mcp: McpTools,
    secrets: Secrets,
    files: FileStore,
    routes: Mapping[str, Route],
    temporal_ui: str | None,
    cors_origins: Sequence[str] = (),
) -> FastAPI:
    """`cors_origins`: whose pages may call, `https://app.example.com`; `*` is every page."""
    release = version("perdure")
    app = FastAPI(title="Perdure", version=release, description=DESCRIPTION, redoc_url=None, redirect_slashes=False)
    tails = Tails(database, live)
    runs = RunService(client, live, routes, ContentService(files, providers), temporal_ui)
    app.state.database = database
    app.state.service = Service(
        database=database,
        live=live,
        client=client,
        runs=runs,
        sessions=SessionService(runs),
        answers=AnswerService(client),
        files=files,
        catalog=Catalog(providers, tools, mcp, secrets),
        tails=tails,
        admissions=Admissions(database),
        temporal_ui=temporal_ui,
        version=release,
    )
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=cors_origins,
            allow_methods=("GET", "POST", "PATCH", "DELETE"),
            allow_headers=("*",),  # without cookies a page can do with them what anybody can who has the token
            expose_headers=EXPOSED,
        )
    app.add_middleware(RequestId, leaving=lambda: tails.leaving)
    errors.install(app)
    for router in ROUTERS:
        app.include_router(router)
    return app


def leave(app: FastAPI) -> None:
    """The process is about to end: `/readyz` says so, and every stream ends with a farewell. Requests are still answered."""
    service: Service = app.state.service
    service.tails.leave()
