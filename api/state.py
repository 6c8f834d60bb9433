"""What the routes need of the process, as FastAPI dependencies."""

from dataclasses import dataclass, replace
from typing import Annotated

from fastapi import Depends, Request

from api.admission import Admissions
from api.services.answers import AnswerService
from api.services.catalog import Catalog
from api.services.runs import RunService
from api.services.sessions import SessionService
from api.tail import Tails
from domain.keys import Principal
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
    admissions: Admissions
    temporal_ui: str | None
    version: str


async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    caller: Principal | None = getattr(request.state, "caller", None)
    if caller is not None and caller.session_id is not None:
        return replace(service, temporal_ui=None)  # an address of the operator's is nothing for browsers
    return service


TheService = Annotated[Service, Depends(_service)]
