"""Time as Perdure keeps it: aware, UTC, `Z` on the wire."""

from datetime import UTC, datetime


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)


def wire(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds and `Z`: one length, so that text order is time order."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
