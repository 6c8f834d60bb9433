"""Built-in tool `plan`: the agent's todo list, for people to see."""

from typing import Literal, cast

from pydantic import BaseModel, Field

from domain.events import AgentPlan, PlanItem
from domain.strict import Strict
from domain.tools import Effect, ToolAnswer, ToolContext


class Item(Strict):
    content: str = Field(min_length=1, max_length=1000, description="What is to be done, in a few words.")
    status: Literal["pending", "in_progress", "completed"] = "pending"


class PlanArguments(Strict):
    items: tuple[Item, ...] = Field(max_length=100, description="The whole list, in order; it takes the place of the last one.")


class Plan:
    name = "plan"
    description = (
        "Write down the steps of a longer task, and keep their state: one in progress, marked completed as soon as it is done. "
        "People watch this list."
    )
    arguments: type[BaseModel] = PlanArguments
    effect = Effect.IDEMPOTENT
    timeout_seconds = 10.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> ToolAnswer:
        items = tuple(PlanItem(content=item.content, status=item.status) for item in cast(PlanArguments, arguments).items)
        done = sum(item.status == "completed" for item in items)
        return ToolAnswer(f"{done} of {len(items)} steps are completed.", (AgentPlan(items=items),))
