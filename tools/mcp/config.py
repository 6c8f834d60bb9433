"""MCP servers that the operator lets agents start: the `[mcp.NAME]` tables of `perdure.toml`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
DIRECTORY = "{directory}"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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

    def program(self, variable: Callable[[str], str | None]) -> str | None:
        """Where the program is; None where it is not. `variable`: the values of `env`."""
        found = shutil.which(self.argv[0], path=(variable("PATH") if "PATH" in self.env else None) or PATH)
        return None if found is None else str(Path(found).absolute())
