"""What the frames of a stream hold beside the events of `domain.events`, and an event as a line of a log."""

import json
from datetime import datetime

from pydantic import BaseModel, JsonValue


class Delta(BaseModel):
    type: str
    text: str = ""
    thinking: str = ""


class DeltaContent(BaseModel):
    content: Delta


class EventDelta(BaseModel):
    """A piece of a text that is being written."""

    event_id: str
    delta: DeltaContent


class Opened(BaseModel):
    id: str
    type: str


class EventStart(BaseModel):
    """A text begins. `run_id`: of the run whose model writes it."""

    event: Opened
    run_id: str


class Done(BaseModel):
    """The end of a run's stream."""

    status: str


class BatchFrame(BaseModel):
    """An event of a batch."""

    counts: dict[str, int] | None = None


class Envelope(BaseModel):
    id: str
    run_id: str | None
    session_thread_id: str | None = None
    created_at: datetime

    @property
    def is_subagents(self) -> bool:
        return self.session_thread_id is not None


def log_line(content: JsonValue) -> str:
    """One event as a line: when, what, and what it says."""
    if not isinstance(content, dict):
        return ""
    at = str(content.get("created_at", "")).partition("T")[2][:12]
    kind = str(content.get("type", ""))
    envelope = ("id", "seq", "type", "session_id", "run_id", "created_at", "processed_at")
    told = {name: value for name, value in content.items() if name not in envelope and value not in (None, False, [], {})}
    match told:
        case {"content": [*blocks]}:
            texts = [str(block.get("text", "")) for block in blocks if isinstance(block, dict)]
            said = " ".join(" ".join(texts).split())
        case {"text": str(text)}:
            said = " ".join(text.split())
        case {"name": str(name), "input": input}:
            said = f"{name} {json.dumps(input, ensure_ascii=False)}"
        case _:
            said = " ".join(f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in told.items())
    return f"{at}  {kind:<26}  {said}"
