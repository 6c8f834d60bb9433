"""MCP servers that the operator lets agents start: the `[mcp.NAME]` tables of `perdure.toml`."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DIRECTORY = "{directory}"


class McpCommand(BaseModel):
    """A program that speaks MCP on its standard input and output.

    It runs as the worker's own user and is not sandboxed: agents name it and can neither change it nor add arguments.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    argv: tuple[Annotated[str, Field(min_length=1, pattern=r"^[^\x00]*$")], ...] = Field(min_length=1)
    """`{directory}` stands for the session's own directory."""
    env: tuple[EnvName, ...] = ()
    """Names of variables that are passed on; it sees no others of the worker's. Not for keys: those are `secrets`."""
    secrets: dict[EnvName, str] = {}
    """Variables by the names of the secrets that fill them: `GITHUB_TOKEN = "github"`."""
    cwd: Path | None = None
    """Default: the session's own directory."""
