"""Built-in tool `ask_user`: a question to the person, whose answer is the tool's result."""

from pydantic import BaseModel, Field

from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext, WaitKind


class AskUserArguments(Strict):
    question: str = Field(min_length=1, max_length=10_000, description="The question, with all that is needed to answer it.")


class AskUser:
    """The workflow answers it by waiting: a question may stay open for weeks, and no activity runs that long."""

    name = "ask_user"
    description = "Ask the user a question and wait for the answer. Use it only when you cannot go on without."
    arguments: type[BaseModel] = AskUserArguments
    effect = Effect.ONCE
    timeout_seconds = 1.0
    asks = False
    waits_for: WaitKind = "input"

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        raise ToolFailed("nobody can be asked here")
