"""Artifacts: rows of what agents published. What is in them is in the folder that API and workers share."""

from collections.abc import Iterable

from sqlalchemy import insert, select
from sqlmodel import col

from domain.errors import NotFound
from domain.events import AgentArtifact, Event
from storage.database import Connection
from storage.rows import Page, fetch_one, owned, page
from storage.tables import ArtifactRow, SessionRow


class Artifacts:
    """Every method is scoped by workspace."""

    def __init__(self, connection: Connection, workspace_id: str) -> None:
        self._connection = connection
        self._workspace_id = workspace_id

    async def get(self, artifact_id: str) -> ArtifactRow:
        """Raises NotFound."""
        mine = select(col(SessionRow.id)).where(col(SessionRow.workspace_id) == self._workspace_id)
        statement = select(ArtifactRow).where(col(ArtifactRow.id) == artifact_id, col(ArtifactRow.session_id).in_(mine))
        found = await fetch_one(self._connection, ArtifactRow, statement)
        if found is None:
            raise NotFound(f"No artifact {artifact_id}.")
        return found

    async def find(self, session_id: str, *, limit: int, cursor: str | None, descending: bool) -> Page[ArtifactRow]:
        """Of one session."""
        return await page(
            self._connection,
            ArtifactRow,
            select(ArtifactRow).where(col(ArtifactRow.session_id) == owned(SessionRow, session_id, self._workspace_id)),
            at=ArtifactRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=ArtifactRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def ids(self, session_id: str) -> list[str]:
        """Of all that the session has."""
        mine = owned(SessionRow, session_id, self._workspace_id)
        statement = select(col(ArtifactRow.id)).where(col(ArtifactRow.session_id) == mine)
        return list((await self._connection.execute(statement)).scalars())


async def record_artifacts(connection: Connection, events: Iterable[Event]) -> None:
    """The rows that follow from `agent.artifact` events."""
    rows = [
        ArtifactRow(
            id=event.payload.artifact_id,
            session_id=event.session_id,
            run_id=event.run_id or "",
            created_at=event.created_at,
            **event.payload.model_dump(include={"name", "description", "media_type", "size_bytes", "sha256", "path"}),
        ).model_dump()
        for event in events
        if isinstance(event.payload, AgentArtifact)
    ]
    if rows:
        await connection.execute(insert(ArtifactRow), rows)
