"""MCP servers as an agent names them, and what the model calls their tools."""

import hashlib
import re
from typing import Annotated, Any, Literal, cast
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from domain.strict import Strict

MAX_NAME_CHARS = 64
"""Both Anthropic's and OpenAI's API take `[a-zA-Z0-9_-]{1,64}` as the name of a tool."""
_HASH_CHARS = 8
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")
_PLAIN_SERVER = re.compile(r"[a-zA-Z0-9-]+(_[a-zA-Z0-9-]+)*")
"""Without two underscores in a row or one at an end, so that the first `__` of a name is where the server's ends."""

ServerName = Annotated[str, Field(min_length=1, max_length=255)]
SecretName = Annotated[str, Field(min_length=1, max_length=128)]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}$")]
Timeout = Annotated[float, Field(gt=0, le=3_600, allow_inf_nan=False)]


class SecretValue(Strict):
    """The value of the secret of that name."""

    secret: SecretName


class UrlServer(Strict):
    """A server behind streamable HTTP. Secrets are named, and sent over https only, or to a host that the operator allows."""

    type: Literal["url"] = "url"
    name: ServerName
    url: str = Field(max_length=8_000)
    authorization_secret: SecretName | None = None
    """Sent as `Authorization: Bearer …`."""
    headers: dict[HeaderName, SecretValue] = Field(default={}, max_length=16)
    timeout_seconds: Timeout = 60
    """Of one call."""

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            host = parts.hostname
            _ = parts.port
        except ValueError:
            host, parts = None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host or "\\" in value or not (value.isascii() and value.isprintable()):
            raise ValueError("the url of an MCP server begins with http:// or https:// and names a host")
        if parts.username is not None or parts.password is not None:
            raise ValueError("the url contains a user name or password: use authorization_secret or headers")
        return value

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of those that it is sent."""
        bearer = () if self.authorization_secret is None else (self.authorization_secret,)
        return (*bearer, *(header.secret for header in self.headers.values()))


class StdioServer(Strict):
    """A program on the worker's machine: one of those that the operator allows in `perdure.toml`."""

    type: Literal["stdio"] = "stdio"
    name: ServerName
    server: ServerName | None = None
    """The operator's name for it, where it is another one."""
    timeout_seconds: Timeout = 60
    """Of one call."""

    @model_validator(mode="before")
    @classmethod
    def _no_command(cls, data: Any) -> Any:
        if isinstance(data, dict) and "command" in data:
            raise ValueError("the operator says what may run: [mcp.NAME] argv in perdure.toml; an agent names it as server")
        return cast("Any", data)

    @property
    def allowed_as(self) -> str:
        return self.server or self.name


McpServer = Annotated[UrlServer | StdioServer, Field(discriminator="type")]


def tool_name(server: str, tool: str) -> str:
    """What the model calls a server's tool: `server__tool`, or that with a hash of both where vendors do not take it.

    The same for the same two names for ever, for it is in conversations; different for different ones.
    """
    plain = f"{server}__{tool}"
    if tool and _PLAIN_SERVER.fullmatch(server) and not _OTHER.search(plain) and len(plain) <= MAX_NAME_CHARS:
        return plain
    digest = hashlib.sha256(f"{server}\0{tool}".encode("utf-8", "replace")).hexdigest()[:_HASH_CHARS]
    return f"{_OTHER.sub('_', plain)[: MAX_NAME_CHARS - _HASH_CHARS - 1]}_{digest}"
