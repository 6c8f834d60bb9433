"""What a tool is: a name, a description, an argument model, and what repeating it means."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel


class Effect(StrEnum):
    READ = "read"
    """Changes nothing: may be run again at will."""
    IDEMPOTENT = "idempotent"
    """Running it twice with the same `ToolContext.idempotency_key` is running it once."""
    ONCE = "once"
    """Never started twice: if a worker died while it ran, the model is told that the outcome is unknown."""


@dataclass(frozen=True)
class ToolContext:
    """Where a tool call happens. `directory` is the session's own, shared by its runs; nothing outside it may be touched."""

    workspace_id: str
    session_id: str
    run_id: str
    tool_use_id: str
    directory: Path

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this tool use."""
        return f"{self.run_id}/{self.tool_use_id}"


class Tool(Protocol):
    """A function the model may call. Cancelling the call must stop what it started."""

    name: str
    description: str
    arguments: type[BaseModel]
    effect: Effect
    timeout_seconds: float

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        """Do it and return the text that the model reads. Raises ToolFailed with what the model should know."""
        ...
