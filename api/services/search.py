"""Sessions by what was said in them, with the piece of text that shows it."""

from collections.abc import Sequence

from api.state import Service
from api.wire import SearchMatch, SnippetPart
from domain.events import AgentMessage, UserMessage
from domain.search import Term, snippet, terms
from domain.transcript import plain
from storage.database import Connection
from storage.journal import read_many
from storage.sessions import Found, SessionFilter, Sessions
from storage.tables import SessionRow


async def matching(
    connection: Connection,
    sessions: Sessions,
    search: str,
    wanted: SessionFilter,
    service: Service,
    *,
    limit: int,
    cursor: str | None,
) -> tuple[list[tuple[SessionRow, SearchMatch]], str | None]:
    """A page, and the next one's cursor. Nothing is found by what has no words. Raises MalformedCursor."""
    asked = terms(search)
    if not asked:
        return [], None
    is_sqlite = service.database.is_sqlite
    found, following = await sessions.search(asked, wanted, is_sqlite=is_sqlite, limit=limit, cursor=cursor)
    events = await read_many(connection, [each.hit.event_id for each in found if each.hit.event_id is not None])
    texts = {
        event.id: plain(event.payload.content) for event in events if isinstance(event.payload, UserMessage | AgentMessage)
    }
    return [(each.session, _match(each, texts, asked)) for each in found], following


def _match(found: Found, texts: dict[str, str], asked: Sequence[Term]) -> SearchMatch:
    hit = found.hit
    text = (found.session.title or "") if hit.event_id is None else texts.get(hit.event_id, "")
    parts = [SnippetPart(text=part.text, match=part.match) for part in snippet(text, asked)]
    return SearchMatch(
        field="title" if hit.event_id is None else "message", event_id=hit.event_id, score=hit.score, snippet=parts
    )
