"""API keys and what they may do."""

import hashlib
import secrets
from typing import Literal, get_args

from pydantic import BaseModel

Scope = Literal["agents:read", "agents:write", "sessions:read", "sessions:write", "runs:read", "runs:write", "keys:write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX_CHARS = 16


class Principal(BaseModel, frozen=True):
    """Whoever is calling: the workspace that its key belongs to, and the key's scopes."""

    workspace_id: str
    key_id: str
    scopes: frozenset[str]


def new_key() -> str:
    """A key of 256 random bits; `pdr_` makes it findable by secret scanners."""
    return "pdr_" + secrets.token_urlsafe(32)


def key_sha256(key: str) -> str:
    # A plain hash suffices: the key is 256 random bits, not a password that could be guessed.
    return hashlib.sha256(key.encode()).hexdigest()
