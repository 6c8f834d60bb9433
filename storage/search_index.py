"""Full text: the words of titles and messages, kept in the transaction that changes what they are words of.

What is found is ranked within bounds, so that a word that everybody uses costs no more than another: of the messages, the
newest `RANKED_MESSAGES` that have all the terms. Where a filter leaves few texts, all of those are read instead.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    Select,
    String,
    and_,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    tuple_,
    update,
)
from sqlalchemy import case as sql_case
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlmodel import col

from domain.errors import MalformedCursor
from domain.events import AgentMessage, Event, UserMessage
from domain.search import Term, indexed
from domain.transcript import plain
from storage.database import Connection
from storage.search_tables import SearchTextRow
from storage.tables import SessionRow

RANKED_MESSAGES = 1_000
RANKED_TITLES = 500
FEW_SESSIONS = 500
FEW_MESSAGES = 5_000
"""In so many sessions with so many messages a filter's texts are read without the index, which would find everybody's."""
TITLE = "title_"
"""Marks titles in the index. No word has an underscore, and no workspace's id is a word."""
_TITLE_WEIGHT = 2
_MILLION = 1_000_000
_CURSOR = re.compile(r"(\d{1,18})\|(\d{1,18})\|(\d{1,18})")

_INSERT = (
    insert(SearchTextRow)
    .values(
        workspace_id=select(col(SessionRow.workspace_id))
        .where(col(SessionRow.id) == bindparam("in_session"))
        .scalar_subquery(),
        session_id=bindparam("in_session"),
        event_id=bindparam("of_event", type_=String()),
        words=bindparam("its_words"),
    )
    .inline()
)
_FORGET_TITLE = delete(SearchTextRow).where(
    col(SearchTextRow.session_id) == bindparam("in_session"), col(SearchTextRow.event_id).is_(None)
)
_REPLACE = (
    update(SearchTextRow)
    .where(col(SearchTextRow.session_id) == bindparam("in_session"), col(SearchTextRow.event_id) == bindparam("of_event"))
    .values(words=bindparam("its_words"))
)


async def index_messages(connection: Connection, events: Iterable[Event]) -> None:
    """New events: what people and the session's own agent say is found; what sub-agents say among themselves is not."""
    rows = [_row(event) for event in events if _said(event) and event.thread_id is None]
    if rows:
        await connection.execute(_INSERT, rows)


async def reindex(connection: Connection, event: Event) -> None:
    """The text of a message that was indexed has changed."""
    await connection.execute(_REPLACE, _row(event))


async def index_title(connection: Connection, session_id: str, title: str | None) -> None:
    """The session has this title now. Whatever sets `sessions.title` calls it."""
    await connection.execute(_FORGET_TITLE, {"in_session": session_id})
    if title:
        await connection.execute(_INSERT, {"in_session": session_id, "of_event": None, "its_words": indexed(title)})


def _said(event: Event) -> bool:
    return isinstance(event.payload, UserMessage | AgentMessage)


def _row(event: Event) -> dict[str, Any]:
    text = plain(cast("UserMessage | AgentMessage", event.payload).content)
    return {"in_session": event.session_id, "of_event": event.id, "its_words": indexed(text)}


@dataclass(frozen=True)
class Hit:
    """A session that was found, by the best of its texts."""

    session_id: str
    event_id: str | None
    """None: its title."""
    score: float


@dataclass(frozen=True)
class Hits:
    found: Sequence[Hit]
    next_page: str | None


async def ranked(
    connection: Connection,
    workspace_id: str,
    wanted: Sequence[Term],
    conditions: Sequence[ColumnElement[bool]],
    *,
    few: Sequence[str] | None,
    is_sqlite: bool,
    limit: int,
    cursor: str | None,
) -> Hits:
    """The workspace's sessions that have all the terms in one text and meet the conditions, the best first.

    `few`: the only sessions that can, if they are known and few.
    Texts that are written while pages are read are not on them: so a session stays where it is. Raises MalformedCursor.
    """
    text = SearchTextRow
    if cursor is None:
        newest = (await connection.execute(select(func.max(col(text.id))))).scalar_one() or 0
        here = None
    else:
        newest, *here = _decode(cursor)
    if few is not None:
        found = _hits_in(few, wanted, newest)
    else:
        hits_of = _sqlite_hits if is_sqlite else _postgres_hits
        firsts = (
            hits_of(workspace_id, wanted, newest, titles=True).limit(RANKED_TITLES).subquery(),
            hits_of(workspace_id, wanted, newest, titles=False).limit(RANKED_MESSAGES).subquery(),
        )
        found = select(firsts[0]).union(select(firsts[1]))
    hits = found.cte("hits")
    # A look at each hit's own session, which no plan turns round: joined, databases begin with all of the workspace's sessions.
    meets = (
        select(and_(col(SessionRow.workspace_id) == workspace_id, *conditions))
        .where(col(SessionRow.id) == col(text.session_id))
        .correlate(text)
        .scalar_subquery()
    )
    scored = (
        select(col(text.id), col(text.session_id), col(text.event_id), _score(wanted).label("score"))
        .join_from(hits, text, col(text.id) == hits.c.id)
        .where(meets)
        .subquery()
    )
    place = func.row_number().over(partition_by=scored.c.session_id, order_by=(scored.c.score.desc(), scored.c.id.desc()))
    best = select(scored, place.label("place")).subquery()
    statement = select(best).where(best.c.place == 1)
    if here is not None:
        statement = statement.where(tuple_(best.c.score, best.c.id) < tuple_(*here, types=[BigInteger(), BigInteger()]))
    statement = statement.order_by(best.c.score.desc(), best.c.id.desc()).limit(limit + 1)
    rows = (await connection.execute(statement)).all()
    shown = rows[:limit]
    last = _encode(newest, shown[-1].score, shown[-1].id) if len(rows) > limit else None
    return Hits([Hit(row.session_id, row.event_id, row.score / _MILLION) for row in shown], last)


def _sqlite_hits(workspace_id: str, wanted: Sequence[Term], newest: int, *, titles: bool) -> Select[Any]:
    """Out of the index, the newest first. Every word is quoted: nothing in it is FTS5's own language."""
    index = table("search_index", column("rowid", Integer()), column("search_index", String()))
    scope = [f'"{workspace_id}"', *([f'"{TITLE}"'] if titles else [])]
    match = " AND ".join([*scope, *(f'"{" ".join(term.words)}"{"*" if term.prefix else ""}' for term in wanted)])
    return (
        select(index.c.rowid.label("id"))
        .where(index.c.search_index.op("MATCH")(match), index.c.rowid <= newest)
        .order_by(index.c.rowid.desc())
    )


def _postgres_hits(workspace_id: str, wanted: Sequence[Term], newest: int, *, titles: bool) -> Select[Any]:
    """The index knows words; which of them stand beside each other, the text says."""
    text = SearchTextRow
    lexemes = [workspace_id, *([TITLE] if titles else []), *(word for term in wanted for word in term.words[:-1])]
    lasts = [f"'{term.words[-1]}'{':*' if term.prefix else ''}" for term in wanted]
    query = " & ".join([*(f"'{lexeme}'" for lexeme in dict.fromkeys(lexemes)), *lasts])
    # In the statement itself: a plan that is made for any words at all would read every text for a rare one, or sort all of a
    # common one's.
    asked = bindparam("query", query, type_=String(), literal_execute=True)
    phrases = [func.strpos(_padded(), term.padded) > 0 for term in wanted if len(term.words) > 1]
    return (
        select(cast("ColumnElement[int]", col(text.id)).label("id"))
        .where(
            literal_column("vector").op("@@")(sql_cast(asked, TSQUERY())),
            col(text.workspace_id) == workspace_id,
            col(text.id) <= newest,
            *phrases,
        )
        .order_by(col(text.id).desc())
    )


def _hits_in(session_ids: Sequence[str], wanted: Sequence[Term], newest: int) -> Select[Any]:
    text = SearchTextRow
    return select(cast("ColumnElement[int]", col(text.id)).label("id")).where(
        col(text.session_id).in_(session_ids),
        col(text.id) <= newest,
        *(_padded().contains(term.padded, autoescape=True) for term in wanted),
    )


def _padded() -> ColumnElement[str]:
    return literal(" ").concat(col(SearchTextRow.words)).concat(" ")


def _score(wanted: Sequence[Term]) -> ColumnElement[int]:
    """In millionths: how often each term is there, which soon counts no more, in how long a text. A title counts twice.

    As BM25 has it, but for how rare a word is, which is the same for all that have it.
    """
    length = func.length(_padded())
    each: list[ColumnElement[float]] = []
    for term in wanted:
        without = func.length(func.replace(_padded(), term.padded, ""))
        times = sql_cast(length - without, Float()) / len(term.padded)
        each.append(times / (times + 0.5 + length / 1000.0))
    weight = sql_case((col(SearchTextRow.event_id).is_(None), _TITLE_WEIGHT), else_=1)
    return sql_cast(sum(each[1:], each[0]) * weight * _MILLION / len(wanted), Integer())


def _encode(newest: int, score: int, id: int) -> str:
    return base64.urlsafe_b64encode(f"{newest}|{score}|{id}".encode()).decode().rstrip("=")


def _decode(cursor: str) -> tuple[int, ...]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (ValueError, binascii.Error):
        text = ""
    found = _CURSOR.fullmatch(text)
    if found is None:
        raise MalformedCursor("`page` is not a cursor of this search: send back `next_page` as it was given.")
    return tuple(int(number) for number in found.groups())
