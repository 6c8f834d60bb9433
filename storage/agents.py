"""Agents and their versions."""

import re
from collections.abc import Iterable
from datetime import datetime

from pydantic import JsonValue
from sqlalchemy import and_, bindparam, or_, select, update
from sqlmodel import col

from domain.agents import AgentConfig, AgentVersion
from domain.clock import now
from domain.errors import Archived, Conflict, NotFound, VersionConflict
from domain.ids import new_id
from storage.database import Connection
from storage.rows import Page, add, fetch, fetch_one, page
from storage.tables import AgentRow, AgentVersionRow

_ID = re.compile(r"agent_[0-9a-z]{26}$")


class Agents:
    """All SQL on agents. Every method is scoped by workspace."""

    def __init__(self, connection: Connection, workspace_id: str) -> None:
        self._connection = connection
        self._workspace_id = workspace_id

    async def create(self, config: AgentConfig, *, inline: bool = False) -> AgentVersion:
        moment = now()
        row = AgentRow(
            id=new_id("agent"),
            workspace_id=self._workspace_id,
            name=config.name,
            version=1,
            inline=inline,
            created_at=moment,
            updated_at=moment,
        )
        await add(self._connection, row)
        await self._add_version(row.id, 1, config, moment)
        return _version(row, 1, config)

    async def get(self, agent_id: str, version: int | None = None, *, lock: bool = False) -> AgentVersion:
        """The newest version, or the one named. Raises NotFound."""
        row = await self._row(agent_id, lock=lock)
        wanted = row.version if version is None else version
        return _version(row, wanted, await self._config(agent_id, wanted))

    async def many(self, wanted: Iterable[tuple[str, int]]) -> dict[tuple[str, int], AgentVersion]:
        """Those versions of those agents, in one query; what is not there is left out."""
        pins = set(wanted)
        if not pins:
            return {}
        version, agent = col(AgentVersionRow.version), col(AgentVersionRow.agent_id)
        named = or_(*(and_(agent == id, version == number) for id, number in pins))
        statement = (
            select(
                agent,
                version,
                col(AgentVersionRow.config),
                col(AgentRow.created_at),
                col(AgentRow.updated_at),
                col(AgentRow.archived_at),
            )
            .join(AgentRow, col(AgentRow.id) == agent)
            .where(
                col(AgentRow.workspace_id) == self._workspace_id,
                named,
            )
        )
        return {
            (row.agent_id, row.version): AgentVersion(
                id=row.agent_id,
                version=row.version,
                config=AgentConfig.model_validate(row.config),
                created_at=row.created_at,
                updated_at=row.updated_at,
                archived_at=row.archived_at,
            )
            for row in await self._connection.execute(statement)
        }

    async def resolve(self, reference: str, version: int | None = None) -> AgentVersion:
        """By id, else by name among those not archived. Raises NotFound, Archived, or Conflict if the name is ambiguous."""
        if _ID.match(reference):
            found = await self.get(reference, version)
        else:
            ids = await self.ids_named(reference)
            if not ids:
                raise NotFound(f"No agent is named {reference!r}. GET /v1/agents lists them.")
            if len(ids) > 1:
                raise Conflict(f"{len(ids)} agents are named {reference!r}: use the id.")
            found = await self.get(ids[0], version)
        if found.archived_at is not None:
            raise Archived(f"Agent {found.id} is archived and starts nothing new.")
        return found

    async def ids_named(self, name: str) -> list[str]:
        statement = select(AgentRow).where(
            col(AgentRow.workspace_id) == self._workspace_id,
            col(AgentRow.name) == name,
            col(AgentRow.archived_at).is_(None),
            col(AgentRow.inline).is_(False),
        )
        return [row.id for row in await fetch(self._connection, AgentRow, statement)]

    async def update(self, agent_id: str, expected: int, config: AgentConfig) -> AgentVersion:
        """Write the next version. Raises VersionConflict when `expected` is not the newest, Archived."""
        row = await self._row(agent_id)
        if row.archived_at is not None:
            raise Archived(f"Agent {agent_id} is archived.")
        if await self._config(agent_id, row.version) == config and row.version == expected:
            return _version(row, row.version, config)
        moment = now()
        statement = (
            update(AgentRow)
            .where(col(AgentRow.id) == agent_id, col(AgentRow.version) == expected)
            .values(version=expected + 1, name=config.name, updated_at=moment)
        )
        if (await self._connection.execute(statement)).rowcount == 0:
            raise VersionConflict(f"You sent version {expected}, the newest is {row.version}: read it again and repeat.")
        await self._add_version(agent_id, expected + 1, config, moment)
        row.version, row.name, row.updated_at = expected + 1, config.name, moment
        return _version(row, expected + 1, config)

    async def archive(self, agent_id: str) -> AgentVersion:
        """Archive for good; archiving again changes nothing."""
        row = await self._row(agent_id)
        if row.archived_at is None:
            row.archived_at = row.updated_at = now()
            await self._connection.execute(
                update(AgentRow)
                .where(col(AgentRow.id) == agent_id)
                .values(archived_at=row.archived_at, updated_at=row.updated_at)
            )
        return _version(row, row.version, await self._config(agent_id, row.version))

    async def find(
        self,
        *,
        limit: int,
        cursor: str | None,
        descending: bool,
        include_archived: bool,
        name: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
    ) -> Page[AgentRow]:
        statement = select(AgentRow).where(col(AgentRow.workspace_id) == self._workspace_id, col(AgentRow.inline).is_(False))
        if not include_archived:
            statement = statement.where(col(AgentRow.archived_at).is_(None))
        if name is not None:
            statement = statement.where(col(AgentRow.name) == name)
        if created_after is not None:
            statement = statement.where(col(AgentRow.created_at) > created_after)
        if created_before is not None:
            statement = statement.where(col(AgentRow.created_at) < created_before)
        return await page(
            self._connection,
            AgentRow,
            statement,
            at=AgentRow.created_at,  # type: ignore[arg-type]  # SQLModel types its columns as their values
            id=AgentRow.id,  # type: ignore[arg-type]
            limit=limit,
            cursor=cursor,
            descending=descending,
        )

    async def versions(self, agent_id: str, *, before: int | None, limit: int) -> list[AgentVersion]:
        """Versions, the newest first. `before`: only those older than that."""
        row = await self._row(agent_id)
        statement = (
            select(AgentVersionRow)
            .where(col(AgentVersionRow.agent_id) == agent_id)
            .order_by(col(AgentVersionRow.version).desc())
            .limit(limit)
        )
        if before is not None:
            statement = statement.where(col(AgentVersionRow.version) < before)
        return [
            _version(row, found.version, AgentConfig.model_validate(found.config))
            for found in await fetch(self._connection, AgentVersionRow, statement)
        ]

    async def _row(self, agent_id: str, *, lock: bool = False) -> AgentRow:
        statement = select(AgentRow).where(col(AgentRow.id) == agent_id, col(AgentRow.workspace_id) == self._workspace_id)
        row = await fetch_one(self._connection, AgentRow, statement.with_for_update() if lock else statement)
        if row is None:
            raise NotFound(f"No agent {agent_id}.")
        return row

    async def _config(self, agent_id: str, version: int) -> AgentConfig:
        return await config_of(self._connection, agent_id, version)

    async def _add_version(self, agent_id: str, version: int, config: AgentConfig, moment: datetime) -> None:
        dumped: dict[str, JsonValue] = config.model_dump(mode="json")
        await add(self._connection, AgentVersionRow(agent_id=agent_id, version=version, config=dumped, created_at=moment))


_CONFIG = select(col(AgentVersionRow.config)).where(
    col(AgentVersionRow.agent_id) == bindparam("agent_id"), col(AgentVersionRow.version) == bindparam("version")
)


async def config_of(connection: Connection, agent_id: str, version: int) -> AgentConfig:
    """What that version says. Raises NotFound."""
    found = (await connection.execute(_CONFIG, {"agent_id": agent_id, "version": version})).scalar_one_or_none()
    if found is None:
        raise NotFound(f"Agent {agent_id} has no version {version}.")
    return AgentConfig.model_validate(found)


def _version(row: AgentRow, version: int, config: AgentConfig) -> AgentVersion:
    return AgentVersion(
        id=row.id,
        version=version,
        config=config,
        created_at=row.created_at,
        updated_at=row.updated_at,
        archived_at=row.archived_at,
    )
