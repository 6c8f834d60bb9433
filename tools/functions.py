"""Python functions as tools: signature and docstring become what the model is told.

    @function_tool(effect=Effect.READ)
    async def exchange_rate(currency: str, context: ToolContext) -> str:
        \"\"\"The price of one unit of a currency in euros.\"\"\"

See docs/how-to/add-a-tool.md.
"""

import asyncio
import contextvars
import inspect
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic_core import to_json

from domain.tools import Effect, ToolContext

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""What both the Anthropic and the OpenAI API accept as the name of a tool."""
THREADS = 32


class PythonFunction:
    """A tool that calls `function`. A parameter annotated ToolContext receives the context and is not shown to the model.

    A sync function runs in a thread, at most 32 at once, from a pool of its own: one that hangs holds up no other tool. Python
    cannot stop a thread, so that a cancelled or timed-out sync function runs on unheard; what must stop has to be async.
    """

    def __init__(self, function: Callable[..., Any], effect: Effect, timeout_seconds: float) -> None:
        self.function = function
        self.name = function.__name__
        self.description = inspect.getdoc(function) or ""
        self.effect = effect
        self.timeout_seconds = timeout_seconds
        self.asks = False
        if not _NAME.fullmatch(self.name):
            raise TypeError(f"{self.name}: a tool's name has at most 64 ASCII letters, digits and underscores")
        if not self.description:
            raise TypeError(f"{self.name}: a tool needs a docstring, it is all that the model knows of it")
        self._context: list[str] = []
        self._fields: dict[str, str] = {}
        self.arguments: type[BaseModel] = self._read_signature()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=self.name)

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        values: dict[str, Any] = {name: getattr(arguments, field) for field, name in self._fields.items()}
        bound = partial(self.function, **values, **dict.fromkeys(self._context, context))
        if inspect.iscoroutinefunction(self.function):
            result = await bound()
        else:
            result = await asyncio.get_running_loop().run_in_executor(self._threads, contextvars.copy_context().run, bound)
        return result if isinstance(result, str) else to_json(result).decode()

    def _read_signature(self) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(self.function, eval_str=True).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"{self.name}: {parameter} cannot be filled by name")
            if parameter.annotation is parameter.empty:
                raise TypeError(f"{self.name}: parameter {parameter.name} has no annotation")
            if parameter.annotation is ToolContext:
                self._context.append(parameter.name)
                continue
            # Named by number, with the parameter's name as alias: `json`, `copy` or `_x` would clash with pydantic's own.
            field = f"argument_{len(fields)}"
            self._fields[field] = parameter.name
            annotation = Annotated[parameter.annotation, Field(alias=parameter.name)]
            fields[field] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
        return create_model(self.name, __config__=ConfigDict(extra="forbid", frozen=True), **fields)


def function_tool(*, effect: Effect, timeout_seconds: float = 60.0) -> Callable[[Callable[..., Any]], PythonFunction]:
    """Make a function a tool. Raises TypeError for one that cannot be, which an import then shows.

    `effect` has no default, because only the author knows what repeating it means. Any result but text becomes JSON.
    """
    return lambda function: PythonFunction(function, effect, timeout_seconds)
