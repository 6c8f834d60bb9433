"""Uploaded files: rows. What is in them is in the folder that API and workers share."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlmodel import col

from domain.errors import NotFound
from storage.database import Connection
from storage.rows import Page, add, fetch, fetch_one, page
from storage.tables import ArtifactRow, FileRow, SessionRow


class Files:
    """Every method is scoped by workspace."""

    def __init__(self, connection: Connection, workspace_id: str) -> None:
        self._connection = connection
        self._mine = select(FileRow).where(col(FileRow.workspace_id) == workspace_id)

    async def add(self, row: FileRow) -> None:
        await add(self._connection, row)

    async def get(self, file_id: str) -> FileRow:
        """Raises NotFound."""
        found = await fetch_one(self._connection, FileRow, self._mine.where(col(FileRow.id) == file_id))
        if found is None:
            raise NotFound(f"No file {file_id}.")
        return found

    async def many(self, file_ids: Sequence[str]) -> dict[str, FileRow]:
        """Those of them that there are, by id."""
        return {row.id: row for row in await fetch(self._connection, FileRow, self._mine.where(col(FileRow.id).in_(file_ids)))}

    async def find(self, *, limit: int, cursor: str | None, descending: bool) -> Page[FileRow]:
        return await page(
            self._connection,
            FileRow,
            self._mine,
            at=FileRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=FileRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def delete(self, file_id: str) -> None:
        """Raises NotFound."""
        await self.get(file_id)
        await self._connection.execute(delete(FileRow).where(col(FileRow.id) == file_id))


async def in_session(connection: Connection, session_id: str, file_ids: Sequence[str]) -> list[FileRow]:
    """Those of the files that are of the session's workspace."""
    workspace = select(col(SessionRow.workspace_id)).where(col(SessionRow.id) == session_id).scalar_subquery()
    mine = (col(FileRow.id).in_(file_ids), col(FileRow.workspace_id) == workspace)
    return await fetch(connection, FileRow, select(FileRow).where(*mine))


async def stored_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    """Those that are ids of uploaded files or artifacts, of any workspace. For the worker only."""
    found: set[str] = set()
    for id in (col(FileRow.id), col(ArtifactRow.id)):
        found.update((await connection.execute(select(id).where(id.in_(ids)))).scalars())
    return found
