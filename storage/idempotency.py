"""How long the answer to a request is kept under its Idempotency-Key."""

from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import col

from domain.clock import now
from storage.database import Connection
from storage.tables import IdempotencyRow

KEPT = timedelta(hours=24)


async def expire_keys(connection: Connection) -> None:
    await connection.execute(delete(IdempotencyRow).where(col(IdempotencyRow.created_at) < now() - KEPT))
