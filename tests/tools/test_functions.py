import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, JsonValue

from domain.errors import ToolFailed
from domain.tools import Effect, Tool, ToolContext
from tests.tools.calls import run
from tools.functions import PythonFunction, function_tool
from tools.registry import Tools


@dataclass
class Reading:
    celsius: float
    at: str


@function_tool(effect=Effect.READ)
async def temperature(
    city: Annotated[str, Field(description="Its English name.", min_length=2)], context: ToolContext, days: int = 1
) -> list[Reading]:
    """The temperature of a city.

    Over some days.
    """
    return [Reading(celsius=day / 2, at=f"{city} for {context.run_id}") for day in range(days)]


async def answer(tool: Tool, context: ToolContext, **arguments: JsonValue) -> tuple[str, bool]:
    outcome = await run(Tools([tool]), tool.name, arguments, None, context)
    return outcome.content, outcome.is_error


async def test_an_async_function(context: ToolContext) -> None:
    assert await answer(temperature, context, city="Bern", days=2) == (
        '[{"celsius":0.0,"at":"Bern for run_1"},{"celsius":0.5,"at":"Bern for run_1"}]',
        False,
    )
    assert (temperature.effect, temperature.timeout_seconds) == (Effect.READ, 60)


def test_what_the_model_sees() -> None:
    (spec,) = Tools([temperature]).specs(["temperature"])

    assert spec.model_dump() == {
        "name": "temperature",
        "description": "The temperature of a city.\n\nOver some days.",
        "input_schema": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its English name.", "minLength": 2},
                "days": {"type": "integer", "default": 1},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }


caller: ContextVar[str] = ContextVar("caller")


async def test_a_sync_function_runs_in_a_thread_with_the_callers_context(context: ToolContext) -> None:
    @function_tool(effect=Effect.IDEMPOTENT, timeout_seconds=5)
    def where(json: bool, _private: str = "x", model_config: str = "y") -> str:
        """Names that would clash with pydantic's."""
        return f"{threading.current_thread() is threading.main_thread()} {caller.get()} {json} {_private} {model_config}"

    caller.set("me")
    assert await answer(where, context, json=True, _private="z") == ("False me True z y", False)


async def test_a_hanging_sync_function_holds_up_nothing_else(context: ToolContext) -> None:
    release = threading.Event()

    @function_tool(effect=Effect.ONCE, timeout_seconds=0.05)
    def hang() -> str:
        """Hangs."""
        release.wait(20)
        return ""

    try:
        outcomes = await asyncio.gather(*(answer(hang, context) for _ in range(40)))
        assert set(outcomes) == {("hang took longer than 0.05 seconds; whether it had an effect is unknown", True)}
        assert await asyncio.wait_for(asyncio.to_thread(str, 1), 1) == "1"
    finally:
        release.set()


async def test_a_tools_own_failure_reaches_the_model(context: ToolContext) -> None:
    @function_tool(effect=Effect.READ)
    async def refuse() -> None:
        """Refuses."""
        raise ToolFailed("the gate is shut")

    @function_tool(effect=Effect.READ)
    async def nothing() -> None:
        """Does nothing."""

    assert await answer(refuse, context) == ("the gate is shut", True)
    assert await answer(nothing, context) == ("null", False)


def undocumented(x: int) -> str:
    return str(x)


def unannotated(x: int) -> str:
    """Has a parameter that says nothing."""
    return str(x)


del unannotated.__annotations__["x"]


def variable(*numbers: int) -> str:
    """Takes any number of arguments."""
    return str(numbers)


def positional(x: int, /) -> str:
    """Cannot be called by name."""
    return str(x)


def größe() -> str:
    """Has a name that no vendor accepts."""
    return ""


@pytest.mark.parametrize(
    "function", [undocumented, unannotated, variable, positional, größe], ids=lambda function: function.__name__
)
def test_functions_that_cannot_be_tools(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=function.__name__):
        function_tool(effect=Effect.READ)(function)


def test_a_tool_can_still_be_called_as_a_function(tmp_path: Path) -> None:
    @function_tool(effect=Effect.READ)
    def double(x: int) -> int:
        """Twice x."""
        return x * 2

    assert isinstance(double, PythonFunction)
    assert double.function(2) == 4
