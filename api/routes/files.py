"""/v1/files"""

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from api.auth import SessionsRead, SessionsWrite
from api.download import DOWNLOADS, download
from api.errors import PROBLEMS
from api.pages import Cursor, Limit, List, Order, listed
from api.state import TheService
from api.transaction import TransactionalRoute, UnitOfWork
from api.upload import FORM, TheUpload, UploadRoute
from api.wire import File
from domain.clock import now
from storage.files import Files
from storage.tables import FileRow

uploads = APIRouter(prefix="/v1/files", tags=["files"], route_class=UploadRoute, responses=PROBLEMS)
router = APIRouter(prefix="/v1/files", tags=["files"], route_class=TransactionalRoute, responses=PROBLEMS)


class FileDeleted(BaseModel):
    id: str
    type: Literal["file_deleted"] = "file_deleted"


@uploads.post("", status_code=200, openapi_extra=FORM)
async def upload_file(caller: SessionsWrite, unit: UnitOfWork, uploaded: TheUpload, response: Response) -> File:
    """Upload a file, to be named in the `resources` of sessions and runs."""
    row = FileRow(
        id=uploaded.id,
        workspace_id=caller.workspace_id,
        filename=uploaded.name,
        media_type=uploaded.media_type,
        size_bytes=uploaded.kept.size_bytes,
        sha256=uploaded.kept.sha256,
        created_at=now(),
    )
    await Files(unit.connection, caller.workspace_id).add(row)
    response.headers["Location"] = f"/v1/files/{row.id}"
    return File.of(row)


@router.get("")
async def list_files(
    caller: SessionsRead, unit: UnitOfWork, limit: Limit = 20, page: Cursor = None, order: Order = "desc"
) -> List[File]:
    """Uploaded files, the newest first."""
    found = await Files(unit.connection, caller.workspace_id).find(limit=limit, cursor=page, descending=order == "desc")
    return listed([File.of(row) for row in found.rows], found.next_page)


@router.get("/{file_id}")
async def get_file(file_id: str, caller: SessionsRead, unit: UnitOfWork) -> File:
    return File.of(await Files(unit.connection, caller.workspace_id).get(file_id))


@router.get("/{file_id}/content", response_class=FileResponse, responses=DOWNLOADS)
async def download_file(
    file_id: str, caller: SessionsRead, unit: UnitOfWork, service: TheService, request: Request
) -> FileResponse:
    """What was uploaded. Takes a `Range`."""
    row = await Files(unit.connection, caller.workspace_id).get(file_id)
    return await download(request, service.files.path(row.workspace_id, row.id), row.filename, row.media_type)


@router.delete("/{file_id}")
async def delete_file(file_id: str, caller: SessionsWrite, unit: UnitOfWork, service: TheService) -> FileDeleted:
    """Delete it. Sessions in whose directory it already is keep their copy."""
    await Files(unit.connection, caller.workspace_id).delete(file_id)
    unit.deliveries.append(lambda: asyncio.to_thread(service.files.remove_stored, caller.workspace_id, [file_id]))
    return FileDeleted(id=file_id)
