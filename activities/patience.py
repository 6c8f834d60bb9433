"""Waiting for the database inside an activity, so that what was done and paid for is not done again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TypeVar

from domain.errors import Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_SECONDS = 0.2
LONGEST_SECONDS = 3.0


async def patiently(work: Callable[[bool], Awaitable[T]]) -> T:
    """Try until the database can be used. The activity's own time-out in Temporal is the end of it.

    `work` is told whether it is the first try: after a commit that broke off, it may have been done already.
    """
    for tries in count():
        try:
            return await work(tries == 0)
        except Unavailable as error:
            log.warning("waiting for the database: %s", error.message)
        await asyncio.sleep(min(FIRST_SECONDS * 2**tries, LONGEST_SECONDS))
    raise AssertionError("count() never ends")
