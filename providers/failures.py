"""Why a call over HTTP failed, in the words of domain/errors.py: shared by the providers whose vendors speak HTTP.

A vendor's own exception never becomes the cause of ours: causes travel into Temporal's history with their text, and some
vendors quote the key in theirs.
"""

import asyncio
import math
import re
from collections.abc import Awaitable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2

from domain.errors import (
    ContextExceeded,
    ProviderAuth,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderStalled,
    ProviderTruncated,
    ProviderUnavailable,
)

CONNECT_SECONDS = 10.0
MAX_PAUSE_SECONDS = 3600.0
"""The longest pause that a vendor's word makes. Who means a day is asked every hour, who wrote nonsense costs no more."""
_DETAIL_CHARACTERS = 500
_NO_COUNT = 1 << 40
CONTEXT_CODES = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""OpenAI's and llama.cpp's words for a request that is too long."""
_TOO_LONG = re.compile(r"prompt is too long|context (length|limit|window|size)|context_length|n_ctx|num_ctx", re.IGNORECASE)
"""Anthropic, vLLM, LM Studio and others have no code for it: only their sentence tells it from other bad requests, and from
other failures where it comes in mid-stream, as LM Studio's does."""

T = TypeVar("T")


def timeouts(idle_seconds: float) -> httpx2.Timeout:
    """HTTP timeouts where silence for `idle_seconds` fails the call, the wait for the first byte included."""
    return httpx2.Timeout(idle_seconds, connect=min(CONNECT_SECONDS, idle_seconds))


async def before(deadline: float, work: Awaitable[T]) -> T:
    """Await `work` until the event loop's clock shows `deadline`, then raise TimeoutError.

    A timeout around a whole generator would also cancel what its consumer does between two items.
    """
    async with asyncio.timeout_at(deadline):
        return await work


def usable_key(key: str | None, advice: str) -> str:
    """The key as it can be sent. Raises ProviderAuth with `advice` where there is none."""
    stripped = (key or "").strip()
    if not stripped:
        raise ProviderAuth(f"No key for this model. {advice}")
    if not (stripped.isascii() and stripped.isprintable()):
        raise ProviderAuth(f"The key for this model holds characters that no key has. {advice}")
    return stripped


def of_status(
    status: int,
    detail: str | None,
    *,
    place: str,
    advice: str,
    key: str | None,
    headers: Mapping[str, str],
    code: str | None = None,
) -> ProviderError:
    """What an HTTP status means for trying again. `detail` is the vendor's own sentence, `advice` names our setting."""
    said = f": {_safe(detail, key)}" if detail else "."
    if status == 401:
        # Without the vendor's sentence: OpenAI's quotes a part of the key.
        return ProviderAuth(f"{place} did not accept the key (HTTP 401). {advice}")
    if status == 403:
        return ProviderAuth(f"{place} refused access (HTTP 403){said} {advice}")
    pause = retry_after_seconds(headers)
    if status == 429:
        return ProviderRateLimited(f"{place} limits the rate (HTTP 429){said}", pause)
    if status == 413 or code in CONTEXT_CODES or (status in (400, 500) and _TOO_LONG.search(detail or "")):
        return ContextExceeded(f"{place} found the request too long (HTTP {status}){said}")
    if status in (408, 409) or status >= 500:
        return ProviderUnavailable(f"{place} is not available (HTTP {status}){said}", pause)
    return ProviderRejected(f"{place} rejected the request (HTTP {status}){said}")


def of_transport(error: BaseException, *, place: str, started: bool) -> ProviderError:
    """What a broken connection or an unreadable stream means; `started`: the answer had begun to arrive."""
    kind = type(error).__name__  # never its text: for a bad header that is the key
    if isinstance(error, TimeoutError):
        return ProviderStalled(f"{place} did not finish in the time allowed for one call.")
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return ProviderStalled(f"{place} was silent for longer than idle_timeout_seconds.")
    if isinstance(error, ValueError):
        return _unreadable(place, error)
    if started:
        return ProviderTruncated(f"{place} broke the connection in mid-answer ({kind}).")
    return ProviderUnavailable(f"No connection to {place} ({kind}).")


@contextmanager
def reading(place: str) -> Generator[None]:
    """Around what takes an answer apart: the packages do not check that members are there, or of which type they are."""
    try:
        yield
    except (AttributeError, TypeError, ValueError) as error:
        raise _unreadable(place, error) from None


def count(figure: object) -> int | None:
    """A figure of the vendor's usage. None for what is no count: usage that cannot be read is no reason to lose an answer."""
    return figure if isinstance(figure, int) and 0 <= figure < _NO_COUNT else None


def truncated(place: str, content_type: str, empty: bool) -> ProviderError:
    """An answer that ended without a stop reason; `empty`: without a single event."""
    media_type = content_type.partition(";")[0].strip()
    if empty and media_type != "text/event-stream":
        return ProviderUnavailable(f"{place} answered with {media_type or 'no type'} and not with a stream: is base_url right?")
    return ProviderTruncated(f"{place} ended its answer without a stop reason.")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`retry-after-ms` (OpenAI's), else RFC 9110 `Retry-After`: seconds or a date, at most `MAX_PAUSE_SECONDS`.

    None where absent or unreadable.
    """
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if math.isfinite(seconds):
            return _pause(seconds)
    try:
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _pause((aware - datetime.now(UTC)).total_seconds())


def _pause(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_PAUSE_SECONDS)


def _unreadable(place: str, error: BaseException) -> ProviderUnavailable:
    return ProviderUnavailable(f"{place} sent something that is no valid answer ({type(error).__name__}).")


def place_of(base_url: str) -> str:
    """Host and port, for messages: a URL may carry a password."""
    url = httpx2.URL(base_url)
    return f"{url.host}:{url.port}" if url.port else url.host


def _safe(detail: str, key: str | None) -> str:
    hidden = detail.replace(sent, "***") if (sent := (key or "").strip()) else detail
    return hidden if len(hidden) <= _DETAIL_CHARACTERS else f"{hidden[:_DETAIL_CHARACTERS]} …"
