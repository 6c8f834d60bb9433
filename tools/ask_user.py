"""Built-in tool `ask_user`: a question to the person, whose answer is the tool's result."""

from typing import Annotated, cast

from pydantic import BaseModel, Field, JsonValue

from domain.errors import ToolFailed
from domain.events import AgentQuestion
from domain.strict import Strict
from domain.tools import Effect, ToolContext, Wait
from tools.schemas import Schema, SchemaFault


class AskUserArguments(Strict):
    question: str = Field(min_length=1, max_length=10_000, description="The question, with all that is needed to answer it.")
    choices: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] | None = Field(
        default=None, min_length=2, max_length=50, description="The possible answers, if there are only these."
    )
    answer_schema: dict[str, JsonValue] | None = Field(
        default=None, description="A JSON Schema, if the answer is to be JSON: for a form, an object with its fields."
    )


class AskUser:
    """The workflow answers it by waiting: a question may stay open for weeks, and no activity runs that long."""

    name = "ask_user"
    description = "Ask the user a question and wait for the answer. Use it only when you cannot go on without."
    arguments: type[BaseModel] = AskUserArguments
    effect = Effect.READ
    timeout_seconds = 1.0
    asks = False

    def plan_wait(self, arguments: BaseModel) -> Wait:
        asked = cast(AskUserArguments, arguments)
        if asked.choices is not None and asked.answer_schema is not None:
            raise ToolFailed("invalid arguments\ngive choices or answer_schema, not both")
        if asked.answer_schema is not None:
            try:
                Schema(asked.answer_schema)
            except SchemaFault as error:
                raise ToolFailed(f"invalid arguments\nanswer_schema is no JSON Schema: {error.detail}") from error
        question = AgentQuestion(
            tool_use_id="", question=asked.question, choices=asked.choices, answer_schema=asked.answer_schema
        )
        return Wait("input", question=question)

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        """Only reached with arguments that cannot be waited with. Raises ToolFailed."""
        self.plan_wait(arguments)
        raise ToolFailed("nobody can be asked here")
