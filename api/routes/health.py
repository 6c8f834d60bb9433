"""Health and facts; no key needed."""

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.state import TheService

router = APIRouter(tags=["health"])


class Ready(BaseModel):
    ready: bool
    database: Literal["ok", "unreachable"]
    temporal: Literal["ok", "unreachable"]
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
    """Whether all parts answer, and which do not."""
    database = await _database_answers(service)
    temporal = await service.client.reachable()
    leaving = service.tails.leaving
    ready = database and temporal and not leaving
    if not ready:
        response.status_code = 503
    return Ready(
        ready=ready,
        database="ok" if database else "unreachable",
        temporal="ok" if temporal else "unreachable",
        leaving=leaving,
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


async def _database_answers(service: TheService) -> bool:
    try:
        async with service.database.read() as connection:
            await connection.execute(text("SELECT 1"))
    except (SQLAlchemyError, OSError):
        return False
    return True
