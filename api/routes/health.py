"""Health and facts; no key needed."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from api.state import TheService
from domain.errors import Unavailable
from storage.outages import in_time
from storage.schema import SchemaState, state

router = APIRouter(tags=["health"])

T = TypeVar("T")

CHECK_SECONDS = 2.0


class Ready(BaseModel):
    ready: bool
    database: Literal["ok", "unreachable"]
    migrations: Literal["ok", "missing", "ahead", "unknown"]
    """Ahead: a newer release has changed the schema, as it does in the middle of a rolling upgrade."""
    temporal: Literal["ok", "unreachable"]
    live_bus: Literal["ok", "unreachable"]
    """Without it everything works, a little later and without previews; it does not make the process unready."""
    leaving: bool = False
    """Told to stop: what is in flight is still answered. Left out while it is not."""


class Info(BaseModel):
    name: Literal["perdure"] = "perdure"
    version: str
    database: Literal["sqlite", "postgres"]
    temporal_ui: str | None


@router.get("/livez")
async def live() -> dict[str, Literal["ok"]]:
    """The process answers."""
    return {"status": "ok"}


@router.get(
    "/readyz",
    response_model_exclude_defaults=True,
    responses={503: {"model": Ready, "description": "A part is missing, or the process is about to end"}},
)
async def ready(service: TheService, response: Response) -> Ready:
    """Whether all parts answer, and which do not; within two seconds."""
    schema, temporal, live_bus = await asyncio.gather(
        _checked(_schema(service)), _checked(service.client.reachable()), _checked(service.live.answers())
    )
    ready = schema in ("ok", "ahead") and temporal is True and not service.tails.leaving
    if not ready:
        response.status_code = 503
    return Ready(
        ready=ready,
        database="unreachable" if schema == "unreachable" or schema is False else "ok",
        migrations="unknown" if schema == "unreachable" or schema is False else schema,
        temporal="ok" if temporal else "unreachable",
        live_bus="unreachable" if live_bus is False else "ok",
        leaving=service.tails.leaving,
    )


@router.get("/v1/info")
async def info(service: TheService) -> Info:
    return Info(
        version=service.version,
        database="sqlite" if service.database.is_sqlite else "postgres",
        temporal_ui=service.temporal_ui,
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics() -> Response:
    """Prometheus text format."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


async def _schema(service: TheService) -> SchemaState | Literal["unreachable"]:
    try:
        async with service.database.read() as connection:
            return await state(connection)
    except Unavailable:
        return "unreachable"
    except SQLAlchemyError:  # there is no such table
        return "missing"


async def _checked(check: Coroutine[Any, Any, T]) -> T | Literal[False]:
    try:
        return await in_time(check, CHECK_SECONDS)
    except Unavailable:
        return False
