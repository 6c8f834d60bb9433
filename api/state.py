"""What the routes need of the process, as FastAPI dependencies."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.services.answers import AnswerService
from api.services.catalog import Catalog
from api.services.runs import RunService
from api.services.sessions import SessionService
from api.tail import Tails
from live.bus import LiveBus
from storage.database import Database
from tools.store import FileStore
from workflows.client import RunClient


@dataclass(frozen=True)
class Service:
    database: Database
    live: LiveBus
    client: RunClient
    runs: RunService
    sessions: SessionService
    answers: AnswerService
    files: FileStore
    catalog: Catalog
    tails: Tails
    temporal_ui: str | None
    version: str


def _service(request: Request) -> Service:
    return request.app.state.service


TheService = Annotated[Service, Depends(_service)]
