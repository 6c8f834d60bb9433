"""API keys and what they may do."""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Literal, get_args

from pydantic import BaseModel

Scope = Literal["agents:read", "agents:write", "sessions:read", "sessions:write", "runs:read", "runs:write", "keys:write"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX_CHARS = 16
CLIENT_TOKEN = "pct_"
"""What client tokens begin with."""
CLIENT_TOKEN_LASTS = timedelta(minutes=60)
CLIENT_SCOPES: frozenset[Scope] = frozenset({"sessions:read", "sessions:write", "runs:read", "runs:write"})

Grant = Literal["approvals", "tool_results"]
"""What a client token may do only where it was said so: decide for the operator, and answer for the operator's tools."""


class Principal(BaseModel, frozen=True):
    """Whoever is calling: the workspace that its key belongs to, and the key's scopes."""

    workspace_id: str
    key_id: str
    """Of the key, or of the client token."""
    scopes: frozenset[str]
    session_id: str | None = None
    """Set: a client token, which is for this session only; `api.client_access` says for what in it."""
    grants: frozenset[str] = frozenset()
    expires_at: datetime | None = None


def new_key() -> str:
    """A key of 256 random bits; `pdr_` makes it findable by secret scanners."""
    return "pdr_" + secrets.token_urlsafe(32)


def new_client_token() -> str:
    """A token of 256 random bits for one session."""
    return CLIENT_TOKEN + secrets.token_urlsafe(32)


def key_sha256(key: str) -> str:
    # A plain hash suffices: the key is 256 random bits, not a password that could be guessed.
    return hashlib.sha256(key.encode()).hexdigest()
