"""JSON Schemas that strangers wrote: checked once, then used to check what a model sends.

`jsonschema-rs` and not `jsonschema`: its regular expressions take linear time, so that a pattern and a text that suits it
cannot stop the worker, and it can be kept from fetching what a `$ref` names.
"""

from collections.abc import Mapping
from typing import Protocol, cast

import jsonschema_rs
from pydantic import JsonValue

MAX_FAULTS = 10
MAX_FAULT_CHARS = 300
MAX_PARTS = 5_000
"""Objects and arrays of a schema, with each reference counted as what it refers to: that is what a check takes time for."""


class SchemaFault(Exception):
    """The schema cannot be used. `path` leads to what is wrong in it."""

    def __init__(self, detail: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.path = path


class _Validator(Protocol):
    """The part of jsonschema_rs's validators that is used."""

    def iter_errors(self, instance: object) -> "list[jsonschema_rs.ValidationError]": ...


class Schema:
    """Raises SchemaFault. Draft 2020-12 where `$schema` names no other."""

    def __init__(self, schema: Mapping[str, JsonValue]) -> None:
        _weigh(schema, schema, (), {})
        try:
            validator = jsonschema_rs.validator_for(
                dict(schema), pattern_options=jsonschema_rs.RegexOptions(), validate_formats=False, offline=True
            )
        except jsonschema_rs.ValidationError as error:
            raise SchemaFault(_cut(error.message), tuple(map(str, error.instance_path))) from error
        except (ValueError, OverflowError) as error:
            raise SchemaFault(_cut(str(error))) from error
        self._validator = cast("_Validator", validator)

    def faults(self, value: JsonValue, whole: str = "arguments") -> list[str]:
        """What does not fit, a line each, to be read; nothing where all fits. `whole` is what the value is called."""
        found: list[str] = []
        try:
            for error in self._validator.iter_errors(value):
                found.append(f"{'.'.join(map(str, error.instance_path)) or whole}: {_cut(error.message)}")
                if len(found) == MAX_FAULTS:
                    break
        except (ValueError, OverflowError) as error:
            return [f"{whole}: {_cut(str(error))}"]  # nested too deep, or numbers beyond bounds
        return found


def _weigh(
    node: JsonValue | Mapping[str, JsonValue], root: Mapping[str, JsonValue], above: tuple[str, ...], known: dict[str, int]
) -> int:
    """How many parts a check goes through. Raises SchemaFault for too many, and for references that go round or away.

    A few references that each are used twice by the next make for a check that never ends.
    """
    if not isinstance(node, Mapping | list):
        return 0
    if len(above) > 50:
        raise SchemaFault("nested too deep")
    total = 1
    children = node.items() if isinstance(node, Mapping) else ((str(index), value) for index, value in enumerate(node))
    for key, value in children:
        if key in ("$dynamicRef", "$recursiveRef") or (
            key == "$ref" and not (isinstance(value, str) and value.startswith("#/"))
        ):
            raise SchemaFault(f"{key}: only references of the form #/$defs/… can be used")
        if key == "$ref" and isinstance(value, str):
            if value in above:
                raise SchemaFault(f"{value} refers to itself")
            if value not in known:
                known[value] = _weigh(_target(value, root), root, (*above, value), known)
            total += known[value]
        elif isinstance(value, dict | list):
            total += _weigh(value, root, (*above, ""), known)
        if total > MAX_PARTS:
            raise SchemaFault(f"more than {MAX_PARTS:,} parts, with what it refers to")
    return total


def _target(reference: str, root: Mapping[str, JsonValue]) -> JsonValue | Mapping[str, JsonValue]:
    node: JsonValue | Mapping[str, JsonValue] = root
    for part in reference.removeprefix("#/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or name not in node:
            raise SchemaFault(f"{reference} refers to nothing")
        node = node[name]
    return node


def _cut(text: str) -> str:
    return text if len(text) <= MAX_FAULT_CHARS else f"{text[:MAX_FAULT_CHARS]}…"
