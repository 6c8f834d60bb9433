"""Web pages as Markdown, made by tools/html_process.py within limits."""

import asyncio
import json
import sys

from pydantic import BaseModel

from domain.errors import ToolFailed
from tools import html_process

PAGE_SECONDS = 12.0
AT_ONCE = 4
"""Pages at once in a worker: each may take a gigabyte."""


class ReadPage(BaseModel):
    """`html_process.Markdown`, checked."""

    title: str
    text: str
    cut: bool


class PageReader:
    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def read(self, url: str, html: str, max_chars: int) -> ReadPage:
        """The page's main content. Raises ToolFailed for one that takes too much time or memory; cancelling it ends it."""
        async with self._slots:
            return await _read(html_process.Page(url=url, html=html, max_chars=max_chars))


async def _read(page: html_process.Page) -> ReadPage:
    process = await asyncio.create_subprocess_exec(
        # No user settings, no environment: nothing of the service is in reach of it.
        *(sys.executable, "-I", html_process.__file__),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
    )
    try:
        async with asyncio.timeout(PAGE_SECONDS):
            output, _ = await process.communicate(json.dumps(page).encode())
    except TimeoutError:
        raise ToolFailed(f"{page['url']}: the page takes longer than {PAGE_SECONDS:g} seconds to read") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ToolFailed(f"{page['url']}: the page takes too much time or memory to read")
    return ReadPage.model_validate_json(output)
