"""JSON Schema, as models and callers write it: nothing is fetched, and no schema is large."""

from collections.abc import Iterable, Mapping
from typing import Any

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from pydantic import JsonValue
from referencing import Registry
from referencing.exceptions import Unresolvable

MAX_FAULTS = 10
_NOTHING_FETCHED: Registry[Any] = Registry()
"""The library's own would fetch a `$ref` that is a URL."""


def schema_fault(schema: Mapping[str, JsonValue]) -> str | None:
    """What is wrong with a schema; None when nothing is."""
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"{_place(error.absolute_path)}: {error.message[:500]}"
    return None


def faults_of(value: JsonValue, schema: Mapping[str, JsonValue]) -> list[str]:
    """What keeps a value from fitting the schema, by place."""
    validator = Draft202012Validator(schema, registry=_NOTHING_FETCHED)
    try:
        errors: Iterable[ValidationError] = validator.iter_errors(value)  # pyright: ignore[reportUnknownMemberType]
        found = [f"{_place(error.absolute_path)}: {error.message[:500]}" for error in errors]
    except (Unresolvable, RecursionError):
        return ["the schema refers to something that is not in it"]
    return found[:MAX_FAULTS]


def _place(path: Iterable[str | int]) -> str:
    return "/" + "/".join(map(str, path))
