"""/v1/sessions/{id}/artifacts and /v1/artifacts"""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse

from api.auth import SessionsRead
from api.download import DOWNLOADS, download
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Order, listed
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Artifact
from storage.artifacts import Artifacts
from storage.sessions import Sessions

router = APIRouter(prefix="/v1", tags=["artifacts"], route_class=TransactionalRoute, responses=PROBLEMS)


@router.get("/sessions/{session_id}/artifacts")
async def list_artifacts(
    session_id: str, caller: SessionsRead, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None, order: Order = "desc"
) -> List[Artifact]:
    """The files that the session's agent published, the newest first."""
    await Sessions(unit.connection, caller.workspace_id).get(session_id)
    artifacts = Artifacts(unit.connection, caller.workspace_id)
    found = await artifacts.find(session_id, limit=limit, cursor=page, descending=order == "desc")
    return listed([Artifact.of(row) for row in found.rows], found.next_page)


@router.get("/artifacts/{artifact_id}/content", response_class=FileResponse, responses=DOWNLOADS)
async def download_artifact(
    artifact_id: str, caller: SessionsRead, unit: UnitOfWork, service: TheService, request: Request
) -> FileResponse:
    """The file as it was when it was published. Takes a `Range`."""
    row = await Artifacts(unit.connection, caller.workspace_id).get(artifact_id)
    return await download(request, service.files.path(caller.workspace_id, row.id), row.name, row.media_type)
