"""The arguments of a tool use, which models write as text and sometimes wrongly."""

import json
from typing import NoReturn, cast

from pydantic import JsonValue

from domain.completions import ToolUse


def tool_use(use_id: str, name: str, arguments: str) -> ToolUse:
    """A tool use from the text of its arguments; no text at all means none. What is no JSON object becomes `malformed`."""
    if not arguments.strip():
        return ToolUse(id=use_id, name=name, input={})
    try:
        parsed: object = json.loads(arguments, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return ToolUse(id=use_id, name=name, input={}, malformed=arguments)
    if not isinstance(parsed, dict):
        return ToolUse(id=use_id, name=name, input={}, malformed=arguments)
    return ToolUse(id=use_id, name=name, input=cast(dict[str, JsonValue], parsed))


def _refuse(constant: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's: Postgres would refuse them later."""
    raise ValueError(constant)
