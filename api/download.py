"""Stored files as downloads: never shown in the browser, whatever they are."""

import asyncio
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import FileResponse

from domain.errors import NotFound, RangeNotSatisfiable

_ONE_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")
_BYTES = {"schema": {"type": "string", "format": "binary"}}
DOWNLOADS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The content, with its own media type", "content": {"*/*": _BYTES}},
    206: {"description": "The range of it that was asked for", "content": {"*/*": _BYTES}},
}


async def download(request: Request, path: Path, name: str, media_type: str) -> FileResponse:
    """Answers one range (RFC 9110); several, or a malformed one, are ignored. Raises NotFound, RangeNotSatisfiable."""
    try:
        status = await asyncio.to_thread(os.stat, path)
    except FileNotFoundError as error:
        raise NotFound("The content is gone.") from error
    _check_range(request, status.st_size)
    headers = {
        "Content-Disposition": attachment(name),
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, max-age=0",
    }
    response = FileResponse(path, media_type=media_type, headers=headers, stat_result=status)
    response.headers["Content-Type"] = media_type  # without the charset that the framework adds to text
    return response


def attachment(name: str) -> str:
    """RFC 6266: the name as it is in UTF-8, and for old clients in ASCII."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%;]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _check_range(request: Request, size: int) -> None:
    asked = request.headers.get("range")
    if asked is None:
        return
    found = _ONE_RANGE.fullmatch(asked.strip())
    first, last, end = found.groups() if found else (None, None, None)
    if not found or (first and last and int(last) < int(first)):
        headers = request.scope["headers"]
        request.scope["headers"] = [(name, value) for name, value in headers if name != b"range"]
    elif (first and int(first) >= size) or (end and (int(end) == 0 or size == 0)):
        raise RangeNotSatisfiable(f"The content has {size} bytes.")
