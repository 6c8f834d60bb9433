"""Lists: what they take and what they answer."""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Depends, Query
from pydantic import AfterValidator, BaseModel

from domain.errors import MalformedCursor

T = TypeVar("T")

Limit = Annotated[int, Query(ge=1, le=100, description="Items on a page")]
EventLimit = Annotated[int, Query(ge=1, le=1000, description="Events on a page")]
Cursor = Annotated[str | None, Query(description="`next_page` of the page before", max_length=500)]
Order = Annotated[Literal["asc", "desc"], Query(description="By time")]


_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)


def _utc(moment: datetime) -> datetime:
    """A time without a zone is UTC; one that no row can have is brought to where arithmetic on it is safe."""
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return min(max(aware, _EARLIEST), _LATEST).astimezone(UTC)


Moment = Annotated[datetime, AfterValidator(_utc)]


@dataclass(frozen=True)
class Created:
    """When what is listed was created: both ends are excluded."""

    after: datetime | None
    before: datetime | None


_TICK = timedelta(microseconds=1)  # what stored times are rounded to


async def _created(
    gt: Annotated[Moment | None, Query(alias="created_at[gt]")] = None,
    gte: Annotated[Moment | None, Query(alias="created_at[gte]")] = None,
    lt: Annotated[Moment | None, Query(alias="created_at[lt]")] = None,
    lte: Annotated[Moment | None, Query(alias="created_at[lte]")] = None,
) -> Created:
    after = [moment for moment in (gt, gte and gte - _TICK) if moment is not None]
    before = [moment for moment in (lt, lte and lte + _TICK) if moment is not None]
    return Created(max(after, default=None), min(before, default=None))


CreatedAt = Annotated[Created, Depends(_created)]


class List(BaseModel, Generic[T]):
    data: list[T]
    next_page: str | None
    has_more: bool


def listed(data: list[T], next_page: str | None) -> List[T]:
    """The answer of a list."""
    return List(data=data, next_page=next_page, has_more=next_page is not None)


def seq_cursor(seq: int) -> str:
    """An opaque cursor for a place in an event log."""
    return base64.urlsafe_b64encode(f"s{seq}".encode()).decode().rstrip("=")


def seq_of(cursor: str) -> int:
    """Raises MalformedCursor."""
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if not text.startswith("s") or not text[1:].isascii() or not text[1:].isdigit() or len(text) > 18:
            raise ValueError
        return int(text[1:])
    except (ValueError, binascii.Error) as error:
        raise MalformedCursor("`page` is not a cursor of this list: send back `next_page` as it was given.") from error
