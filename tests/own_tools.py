"""Tools of an operator's own, as `perdure.toml` names them in the tests."""

import asyncio
from pathlib import Path

from domain.tools import Effect, ToolContext
from tools.functions import function_tool


@function_tool(effect=Effect.ONCE)
async def ring(times: int, context: ToolContext) -> str:
    """Ring the bell."""
    context.directory.mkdir(parents=True, exist_ok=True)
    with Path(context.directory / "rung").open("a") as file:
        file.write("x" * times)
    return f"rung {times} times under {context.idempotency_key}"


@function_tool(effect=Effect.READ, timeout_seconds=0.3)
async def dawdle() -> str:
    """Take too long."""
    await asyncio.sleep(30)
    return "never"


@function_tool(effect=Effect.READ)
def explode() -> str:
    """Fail."""
    raise RuntimeError("a secret that the model must not read")
