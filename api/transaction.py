"""One request, one transaction: who is calling, the Idempotency-Key, the commit, and only then Temporal."""

import hashlib
import json
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Response
from fastapi.routing import APIRoute
from sqlalchemy import select, text
from sqlmodel import col

from api.auth import authenticate
from domain.clock import now
from domain.errors import BadRequest, IdempotencyInFlight, IdempotencyKeyReused, Invalid, TooLarge, Unavailable
from domain.keys import Principal
from storage.database import Connection, Database, Transaction
from storage.idempotency import expire_keys
from storage.journal import Journal
from storage.outages import in_time
from storage.rows import add, fetch_one
from storage.tables import IdempotencyRow

log = logging.getLogger(__name__)

MAX_BODY = 10 * 1024 * 1024
REQUEST_SECONDS = 8.0
"""A request that waits longer for the database is refused: its caller can do something better, such as trying again."""
_MAX_KEY = 255
_MAX_DEPTH = 64
_IN_FLIGHT = "The first request with this Idempotency-Key is still running: repeat this one in a moment."
_KEPT_HEADERS = ("location", "content-location", "content-type")

Delivery = Callable[[], Awaitable[None]]


@dataclass
class Unit:
    """What a request may use: a connection, the caller, and a list of what to deliver once it is committed."""

    connection: Connection
    caller: Principal
    transaction: Transaction | None = None
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    secret: str | None = None
    """A member of the answer that is shown once: a replay under the Idempotency-Key has null there."""

    @property
    def journal(self) -> Journal:
        assert self.transaction is not None, "a GET appends nothing"
        return Journal(self.connection, self.transaction.appended)


async def _unit(request: Request) -> Unit:
    return request.state.unit


UnitOfWork = Annotated[Unit, Depends(_unit)]


class TransactionalRoute(APIRoute):
    """GET reads; every other method runs in one writing transaction, the idempotency record included.

    So a request repeated with its key finds either everything that the first one did, or nothing of it.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        route = self.path
        in_flight: set[tuple[str, str, str]] = set()

        async def within(request: Request) -> Response:
            # Before any lock is taken: a slow upload must not hold the writer.
            body = await self.receive(request)
            response, unit = await in_time(transact(request, body), REQUEST_SECONDS)
            for deliver in unit.deliveries:
                await _deliver(deliver)
            return response

        async def transact(request: Request, body: bytes) -> tuple[Response, Unit]:
            database: Database = request.app.state.database
            async with database.read() as connection:
                caller = await authenticate(request, connection)
                if request.method == "GET":
                    unit = request.state.unit = Unit(connection, caller)
                    return await handle(request), unit
            key = request.headers.get("idempotency-key") if request.method == "POST" else None
            if key is not None and not 0 < len(key) <= _MAX_KEY:
                raise BadRequest(f"Idempotency-Key must have 1 to {_MAX_KEY} characters.")
            path = f"{request.method} {request.scope['path'] if '{' in route else route}"
            with _alone(in_flight, caller.workspace_id, path, key):
                async with database.write() as transaction:
                    unit = request.state.unit = Unit(transaction.connection, caller, transaction)
                    if key is None:
                        response = await handle(request)
                    else:
                        record = _Record(transaction.connection, database, caller.workspace_id, path, key, body)
                        if before := await record.find():
                            return before, unit
                        response = await handle(request)
                        await record.keep(response, unit.secret)
            return response, unit

        return within

    async def receive(self, request: Request) -> bytes:
        """What stands for the body where an Idempotency-Key is used again."""
        return await _body(request)


@contextmanager
def _alone(in_flight: set[tuple[str, str, str]], workspace_id: str, path: str, key: str | None) -> Generator[None]:
    """Raises IdempotencyInFlight when this process is at the same request already."""
    if key is None:
        yield
        return
    mine = (workspace_id, path, key)
    if mine in in_flight:
        raise IdempotencyInFlight(_IN_FLIGHT)
    in_flight.add(mine)
    try:
        yield
    finally:
        in_flight.remove(mine)


async def _deliver(deliver: Delivery) -> None:
    try:
        await deliver()
    except Unavailable as error:
        # The row is committed: the sweeper delivers it when Temporal is back.
        log.warning("accepted, but not delivered yet: %s", error.message)


async def _body(request: Request) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY:
        raise TooLarge("The body is over 10 MB.")
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MAX_BODY:
            raise TooLarge("The body is over 10 MB.")
        pieces.append(piece)
    body = b"".join(pieces)
    request._body = body  # pyright: ignore[reportPrivateUsage]  # Starlette's own cache, filled here under a limit
    _check(body)
    return body


def _check(body: bytes) -> None:
    """Refuse what the JSON reader lets through and no database can carry: NUL, half surrogates, NaN, bottomless nesting."""
    try:
        root: object = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return  # the framework says what is wrong with it
    check_json(root)


def check_json(root: object) -> None:
    """Raises Invalid for what the JSON reader lets through and no database can carry."""
    inside = [(root, 0)]
    while inside:
        value, depth = inside.pop()
        if depth > _MAX_DEPTH:
            raise Invalid(f"The body is nested more than {_MAX_DEPTH} deep.")
        match value:
            case str():
                _check_text(value)
            case float() if not math.isfinite(value):
                raise Invalid("The body contains a number that JSON does not have: NaN or infinity.")
            case dict():
                inside.extend((part, depth + 1) for pair in cast("dict[str, object]", value).items() for part in pair)
            case list():
                inside.extend((part, depth + 1) for part in cast("list[object]", value))
            case _:
                pass


def _check_text(value: str) -> None:
    if "\x00" in value:
        raise Invalid("The body contains a NUL character, which cannot be stored.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Invalid("The body contains half of a surrogate pair, which is not text.") from error


@dataclass
class _Record:
    connection: Connection
    database: Database
    workspace_id: str
    route: str
    key: str
    body: bytes

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    async def find(self) -> Response | None:
        """The first answer under this key. Raises IdempotencyInFlight when another process is at it, IdempotencyKeyReused."""
        if not self.database.is_sqlite:  # SQLite has one writer at a time anyway
            lock = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
            locked = await self.connection.execute(lock, {"name": f"{self.workspace_id}|{self.route}|{self.key}"})
            if not locked.scalar_one():
                raise IdempotencyInFlight(_IN_FLIGHT)
        await expire_keys(self.connection)
        statement = select(IdempotencyRow).where(
            col(IdempotencyRow.workspace_id) == self.workspace_id,
            col(IdempotencyRow.route) == self.route,
            col(IdempotencyRow.key) == self.key,
        )
        row = await fetch_one(self.connection, IdempotencyRow, statement)
        if row is None:
            return None
        if row.body_sha256 != self._sha256:
            raise IdempotencyKeyReused("This Idempotency-Key was used with another body: take a fresh one.")
        return Response(row.body, row.status, {**row.headers, "Idempotent-Replayed": "true"})

    async def keep(self, response: Response, secret: str | None) -> None:
        body = bytes(response.body).decode()
        if secret is not None:
            body = json.dumps({**json.loads(body), secret: None})
        row = IdempotencyRow(
            workspace_id=self.workspace_id,
            route=self.route,
            key=self.key,
            body_sha256=self._sha256,
            status=response.status_code,
            headers={name: value for name, value in response.headers.items() if name in _KEPT_HEADERS},
            body=body,
            created_at=now(),
        )
        await add(self.connection, row)
