"""From SQL results to row objects, and opaque page cursors."""

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, CompoundSelect, RowMapping, ScalarSelect, Select, insert, select, tuple_, union_all
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.orm.attributes import manager_of_class
from sqlmodel import SQLModel, col

from domain.clock import wire
from domain.errors import MalformedCursor
from storage.batch_tables import BatchRow
from storage.database import Connection
from storage.tables import AgentRow, SessionRow

R = TypeVar("R", bound=SQLModel)


async def fetch(
    connection: Connection, row: type[R], statement: Select[Any], parameters: Mapping[str, Any] | None = None
) -> list[R]:
    """All rows of a `select(Row)`."""
    return [_loaded(row, found) for found in (await connection.execute(statement, parameters)).mappings()]


def _loaded(row: type[R], columns: RowMapping) -> R:
    """As SQLAlchemy's own loading does it: the constructor, which sets column after column, takes ten times as long."""
    loaded = manager_of_class(row).new_instance()
    vars(loaded).update(columns)
    return loaded


async def fetch_one(connection: Connection, row: type[R], statement: Select[Any]) -> R | None:
    return await fetch_only(connection, row, statement.limit(1), {})


async def fetch_only(connection: Connection, row: type[R], statement: Select[Any], parameters: Mapping[str, Any]) -> R | None:
    """The one row that a statement can find. To build one takes far longer than to run it: this one was built before."""
    found = await fetch(connection, row, statement, parameters)
    return found[0] if found else None


async def add(connection: Connection, row: SQLModel) -> None:
    await connection.execute(insert(type(row)), [row.model_dump()])


def owned(row: type[AgentRow] | type[SessionRow] | type[BatchRow], id: str, workspace_id: str) -> ScalarSelect[str]:
    """The id if it is that workspace's. Compared with it, a column finds its own index; a second condition on the workspace
    would offer the database that of the whole workspace too, and it has no figures to choose by."""
    return select(col(row.id)).where(col(row.id) == id, col(row.workspace_id) == workspace_id).scalar_subquery()


@dataclass(frozen=True)
class Page(Generic[R]):
    """A page of rows and the cursor of the next one."""

    rows: Sequence[R]
    next_page: str | None


async def page(
    connection: Connection,
    row: type[R],
    statement: Select[Any],
    *,
    at: InstrumentedAttribute[datetime],
    id: InstrumentedAttribute[str],
    limit: int,
    cursor: str | None,
    descending: bool,
    one_of: Sequence[ColumnElement[bool]] = (),
    by: tuple[InstrumentedAttribute[datetime], InstrumentedAttribute[str]] | None = None,
) -> Page[R]:
    """One page by creation time and id. Keyset, not offset: the cost of a page does not grow with its number.

    `one_of`: conditions of which one must hold, if there are any. `by`: the same two in a table that the statement joins, whose
    index has the rows in order.
    """
    key_at, key = by or (at, id)
    place = tuple_(key_at, key)
    if cursor is not None:
        here = tuple_(*_decode(cursor), types=[at.type, id.type])
        statement = statement.where(place < here if descending else place > here)
    order = (key_at.desc(), key.desc()) if descending else (key_at.asc(), key.asc())
    if len(one_of) > 1:
        firsts = first_of_each(statement.with_only_columns(key), one_of, order, limit + 1)
        statement = select(row).where(id.in_(firsts))
        order = (at.desc(), id.desc()) if descending else (at.asc(), id.asc())
    else:
        statement = statement.where(*one_of)
    rows = await fetch(connection, row, statement.order_by(*order).limit(limit + 1))
    if len(rows) <= limit:
        return Page(rows, None)
    last_row = rows[limit - 1]
    return Page(rows[:limit], _encode(getattr(last_row, at.key), getattr(last_row, id.key)))


def first_of_each(
    keys: Select[Any], conditions: Iterable[ColumnElement[bool]], order: Sequence[Any], limit: ColumnElement[int] | int
) -> CompoundSelect[Any]:
    """The first `limit` keys under each condition.

    Each comes in order out of its index. A database that is given the conditions all at once sorts everything that they hold
    for, or passes over everything else.
    """
    firsts = (keys.where(condition).order_by(*order).limit(limit).subquery() for condition in conditions)
    return union_all(*(select(first) for first in firsts))


def _encode(moment: datetime, id: str) -> str:
    return base64.urlsafe_b64encode(f"{wire(moment)}|{id}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[datetime, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        moment, separator, id = text.partition("|")
        if not separator or not id.isascii() or not id.isprintable():
            raise ValueError
        at = datetime.fromisoformat(moment)
        if wire(at) != moment:
            raise ValueError
        return at, id
    except (ValueError, OverflowError, binascii.Error) as error:
        raise MalformedCursor("`page` is not a cursor of this list: send back `next_page` as it was given.") from error
