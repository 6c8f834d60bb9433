"""/v1/sessions/{id}/resources: the files that were given to a session."""

from fastapi import APIRouter

from api.auth import SessionsRead, SessionsWrite
from api.errors import PROBLEMS
from api.pages import Cursor, EventLimit, List, listed, seq_cursor, seq_of
from api.routes.sessions import mounted_files
from api.transaction import TransactionalRoute, UnitOfWork
from api.wire import Resource
from domain.errors import Archived, NotFound
from domain.files import FileResource, MountedFile
from storage.sessions import Sessions
from storage.tables import SessionRow

router = APIRouter(
    prefix="/v1/sessions/{session_id}/resources", tags=["files"], route_class=TransactionalRoute, responses=PROBLEMS
)


@router.post("", status_code=201)
async def add_resource(session_id: str, body: FileResource, caller: SessionsWrite, unit: UnitOfWork) -> Resource:
    """Give the session another file; it is there before the next tool call."""
    sessions = Sessions(unit.connection, caller.workspace_id)
    session = await sessions.get(session_id, lock=True)
    if session.archived_at is not None:
        raise Archived(f"Session {session_id} is archived.")
    mounted = await mounted_files(unit, [body], [file.path for file in _files(session)])
    await sessions.add_resources(session, mounted)
    return Resource.of(mounted[0])


@router.get("")
async def list_resources(
    session_id: str, caller: SessionsRead, unit: UnitOfWork, limit: EventLimit = 1000, page: Cursor = None
) -> List[Resource]:
    """In the order in which they were given."""
    files = _files(await Sessions(unit.connection, caller.workspace_id).get(session_id))
    begin = 0 if page is None else seq_of(page)
    shown = [Resource.of(file) for file in files[begin : begin + limit]]
    return listed(shown, seq_cursor(begin + limit) if begin + limit < len(files) else None)


@router.get("/{resource_id}")
async def get_resource(session_id: str, resource_id: str, caller: SessionsRead, unit: UnitOfWork) -> Resource:
    for file in _files(await Sessions(unit.connection, caller.workspace_id).get(session_id)):
        if file.id == resource_id:
            return Resource.of(file)
    raise NotFound(f"No resource {resource_id} in this session.")


def _files(session: SessionRow) -> list[MountedFile]:
    return [MountedFile.model_validate(resource) for resource in session.resources or ()]
