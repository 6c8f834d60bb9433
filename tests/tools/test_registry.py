import asyncio
import logging
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, JsonValue

from domain.agent_tools import ASKING
from domain.errors import Invalid
from domain.tools import Effect, ToolContext
from tests.tools.calls import run
from tools.functions import PythonFunction, function_tool
from tools.registry import Tools, builtin_tools, load_functions


@function_tool(effect=Effect.READ)
async def greet(name: str, title: str | None = None, times: int = 1) -> str:
    """Greet somebody."""
    return f"Hello {title or ''} {name}! " * times


def failing(error: BaseException) -> PythonFunction:
    async def fail(password: str) -> str:
        """Fails."""
        raise error

    return function_tool(effect=Effect.READ)(fail)


class Nested(BaseModel):
    title: str
    inner: "list[Nested]" = []


def test_the_toolset() -> None:
    tools = Tools(builtin_tools(), [greet])

    files = ("read", "write", "edit", "glob", "grep", "bash", "publish_artifact")
    assert tools.names == (*files, "web_fetch", "plan", "ask_user", "sleep_until", "wait_for_event", "greet")
    assert [name for name in tools.names if not tools.is_builtin(name)] == ["greet"]
    assert [name for name in tools.names if tools.offer(name).plan_wait] == ["ask_user", "sleep_until", "wait_for_event"]
    assert tools.get("greet") is greet
    assert tools.get("none") is None
    assert not tools.is_builtin("none")
    assert {name: tool.effect.value for name in tools.names if (tool := tools.get(name))} == {
        **dict.fromkeys(("read", "glob", "grep", "web_fetch", "ask_user", "sleep_until", "wait_for_event", "greet"), "read"),
        **dict.fromkeys(("write", "edit", "plan", "publish_artifact"), "idempotent"),
        "bash": "once",
    }
    assert [name for name in tools.names if tools.offer(name).policy == "always_ask"] == list(ASKING)


def test_specs_follow_the_names_asked_for() -> None:
    specs = Tools(builtin_tools(), [greet]).specs(["greet", "gone", "read"])

    assert [spec.name for spec in specs] == ["greet", "read"]
    assert specs[0].input_schema["properties"] == {
        "name": {"type": "string"},
        "title": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "times": {"type": "integer", "default": 1},
    }
    assert all(spec.description for spec in Tools(builtin_tools()).specs(["read", "write", "edit", "glob", "grep", "ask_user"]))


def test_titles_go_and_arguments_called_title_stay() -> None:
    @function_tool(effect=Effect.READ)
    def deep(item: Nested) -> str:
        """Takes what contains itself."""
        return item.title

    (spec,) = Tools([deep]).specs(["deep"])

    assert spec.input_schema["$defs"] == {
        "Nested": {
            "type": "object",
            "properties": {
                "title": {"type": "string"},
                "inner": {"type": "array", "items": {"$ref": "#/$defs/Nested"}, "default": []},
            },
            "required": ["title"],
        }
    }


def test_two_tools_of_one_name() -> None:
    with pytest.raises(Invalid, match="two tools are called greet"):
        Tools(builtin_tools(), [greet, greet])


async def test_a_call(context: ToolContext) -> None:
    outcome = await run(Tools([greet]), "greet", {"name": "Ada", "times": "2"}, None, context)

    assert (outcome.content, outcome.is_error) == ("Hello  Ada! Hello  Ada! ", False)


@pytest.mark.parametrize(
    ("name", "input", "malformed", "message"),
    [
        ("salute", {}, None, "there is no tool 'salute'; there are: greet"),
        ("greet", {}, '{"name": ', 'the arguments are no JSON object: {"name": '),
        ("greet", {}, None, "invalid arguments\nname: Field required"),
        ("greet", {"name": "a", "time": 2}, None, "invalid arguments\ntime: Extra inputs are not permitted"),
        (
            "greet",
            {"name": ["a"], "times": "x"},
            None,
            "invalid arguments\nname: Input should be a valid string\n"
            "times: Input should be a valid integer, unable to parse string as an integer",
        ),
    ],
    ids=["unknown", "malformed", "missing", "extra", "types"],
)
async def test_what_the_model_got_wrong(
    context: ToolContext, name: str, input: dict[str, JsonValue], malformed: str | None, message: str
) -> None:
    outcome = await run(Tools([greet]), name, input, malformed, context)

    assert (outcome.content, outcome.is_error) == (message, True)


async def test_half_a_surrogate_pair_is_no_text(context: ToolContext) -> None:
    outcome = await run(Tools(builtin_tools()), "write", {"file_path": "a\ud800", "content": "\udc80"}, None, context)

    assert outcome.is_error
    assert outcome.content.startswith("invalid arguments\nfile_path: ")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("hunter2"),
        TimeoutError("hunter2"),
        SystemExit("hunter2"),
        asyncio.CancelledError("hunter2"),
        KeyError("hunter2"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_nothing_a_tool_raises_comes_out(
    context: ToolContext, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with caplog.at_level(logging.INFO):
        outcome = await run(Tools([failing(error)]), "fail", {"password": "hunter2"}, None, context)

    assert (outcome.content, outcome.is_error) == (f"tool failed: {type(error).__name__}", True)
    assert f"tool fail failed: {type(error).__name__}" in caplog.text
    assert "hunter2" not in caplog.text


async def test_a_tools_own_validation_error_is_not_blamed_on_the_arguments(context: ToolContext) -> None:
    @function_tool(effect=Effect.READ)
    async def inner() -> str:
        """Reads something of its own."""
        return Nested.model_validate({}).title

    assert (await run(Tools([inner]), "inner", {}, None, context)).content == "tool failed: ValidationError"


async def test_cancelling_the_caller_cancels_the_tool(context: ToolContext) -> None:
    reached = asyncio.Event()
    stopped = asyncio.Event()

    @function_tool(effect=Effect.READ)
    async def wait() -> str:
        """Waits."""
        reached.set()
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()
        return ""

    call = asyncio.create_task(run(Tools([wait]), "wait", {}, None, context))
    await reached.wait()
    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    assert stopped.is_set()


async def test_output_is_cut_and_can_be_stored(context: ToolContext) -> None:
    @function_tool(effect=Effect.READ)
    async def shout(text: str, times: int) -> str:
        """Repeats."""
        return text * times

    @function_tool(effect=Effect.READ)
    async def odd() -> str:
        """Answers what neither Postgres nor JSON takes."""
        return "a\0b\ud800c"

    tools = Tools([shout, odd])
    cut = (await run(tools, "shout", {"text": "ab", "times": 60_000}, None, context)).content
    assert cut == "ab" * 50_000 + "\n[cut: the first 100,000 of 120,000 characters]"
    assert (await run(tools, "shout", {"text": "ab", "times": 50_000}, None, context)).content == "ab" * 50_000
    assert (await run(tools, "odd", {}, None, context)).content == "a\ufffdb?c"


TOOL_MODULE = '''
from domain.tools import Effect
from tools.functions import function_tool

@function_tool(effect=Effect.READ)
def {name}(x: int) -> str:
    """One."""
    return str(x)
'''


def test_functions_of_the_operators_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "operator_one.py").write_text(TOOL_MODULE.format(name="one"))
    (tmp_path / "operator_two.py").write_text("from operator_one import one\n" + TOOL_MODULE.format(name="two"))
    (tmp_path / "operator_clash.py").write_text(TOOL_MODULE.format(name="read"))
    (tmp_path / "operator_empty.py").write_text("")
    (tmp_path / "operator_broken.py").write_text("1 / 0")

    try:
        assert Tools((), load_functions(["operator_one", "operator_two"])).names == ("one", "two")
        with pytest.raises(Invalid, match="called read"):
            Tools(builtin_tools(), load_functions(["operator_clash"]))
        for name, reason in (("empty", "no function"), ("broken", "ZeroDivisionError"), ("missing", "ModuleNotFoundError")):
            with pytest.raises(Invalid, match=reason):
                load_functions([f"operator_{name}"])
    finally:
        for name in [name for name in sys.modules if name.startswith("operator_")]:
            del sys.modules[name]
