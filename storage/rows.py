"""From SQL results to row objects, and opaque page cursors."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, and_, insert, or_
from sqlalchemy.orm import InstrumentedAttribute
from sqlmodel import SQLModel

from domain.clock import wire
from domain.errors import MalformedCursor
from storage.database import Connection

R = TypeVar("R", bound=SQLModel)


async def fetch(connection: Connection, row: type[R], statement: Select[Any]) -> list[R]:
    """All rows of a `select(Row)`."""
    return [row(**found._mapping) for found in await connection.execute(statement)]  # pyright: ignore[reportPrivateUsage]  # a public name in SQLAlchemy, underscored against clashes with columns


async def fetch_one(connection: Connection, row: type[R], statement: Select[Any]) -> R | None:
    found = await fetch(connection, row, statement.limit(1))
    return found[0] if found else None


async def add(connection: Connection, row: SQLModel) -> None:
    await connection.execute(insert(type(row)), [row.model_dump()])


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
) -> Page[R]:
    """One page by creation time and id. Keyset, not offset: the cost of a page does not grow with its number."""
    if cursor is not None:
        moment, last = _decode(cursor)
        past = (at < moment, id < last) if descending else (at > moment, id > last)
        statement = statement.where(or_(past[0], and_(at == moment, past[1])))
    order = (at.desc(), id.desc()) if descending else (at.asc(), id.asc())
    rows = await fetch(connection, row, statement.order_by(*order).limit(limit + 1))
    if len(rows) <= limit:
        return Page(rows, None)
    last_row = rows[limit - 1]
    return Page(rows[:limit], _encode(getattr(last_row, at.key), getattr(last_row, id.key)))


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
