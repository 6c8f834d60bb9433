"""Questions that a run has asked and that have no result yet."""

from dataclasses import dataclass

from domain.events import AgentQuestion, AgentToolResult, UserAnswer
from storage.database import Connection
from storage.journal import last_of_type, read

PAGE = 1000


@dataclass
class Question:
    tool_use_id: str
    answer_id: str | None = None
    """The event that answers it; None: nobody has yet."""


async def open_questions(connection: Connection, session_id: str, run_id: str) -> list[Question]:
    """In the order in which they were asked; all are of the newest step, for the model is not called before they are closed."""
    after = await last_of_type(connection, session_id, run_id, "span.model_request_start")
    types = ("agent.question", "user.answer", "agent.tool_result")
    found: dict[str, Question] = {}
    for event in await read(connection, session_id, run_id=run_id, after=after, types=types, limit=PAGE):
        match event.payload:
            case AgentQuestion(tool_use_id=asked):
                found[asked] = Question(asked)
            case UserAnswer(tool_use_id=answered) if answered in found:
                found[answered].answer_id = event.id
            case AgentToolResult(tool_use_id=closed):
                found.pop(closed, None)
            case _:
                pass
    return list(found.values())
