import asyncio
import time
from typing import Any

import pytest
from pydantic import JsonValue

from tools.schemas import Schema, SchemaFault


def described(**members: Any) -> dict[str, JsonValue]:
    return {"type": "object", **members}


def chain(length: int, at_once: int) -> dict[str, JsonValue]:
    """Definitions of which each is made of the next, several times."""
    definitions: dict[str, Any] = {
        f"d{step}": {"allOf": [{"$ref": f"#/$defs/d{step + 1}"}] * at_once} for step in range(length)
    }
    definitions[f"d{length}"] = {"type": "object"}
    return described(**{"$ref": "#/$defs/d0", "$defs": definitions})


def test_what_does_not_fit_is_said_a_line_each() -> None:
    point: JsonValue = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    schema = Schema(
        described(properties={"at": {"$ref": "#/$defs/point"}}, additionalProperties=False, **{"$defs": {"point": point}})
    )

    assert schema.faults({"at": {"x": 1}}) == []
    assert schema.faults({"at": {"x": "1"}, "z": 1}) == [
        'at.x: "1" is not of type "integer"',
        "arguments: Additional properties are not allowed ('z' was unexpected)",
    ]


@pytest.mark.parametrize(
    ("schema", "detail", "path"),
    [
        (described(properties={"a": {"type": "strin"}}), "strin", ("properties", "a", "type")),
        (described(required="a"), "not of type", ("required",)),
        (described(properties={"a": {"pattern": "("}}), "regex", ("properties", "a", "pattern")),
        (described(properties={"a": {"$ref": "http://127.0.0.1:9/schema"}}), "only references", ()),
        (described(properties={"a": {"$ref": "#/$defs/none"}}), "refers to nothing", ()),
        (described(**{"$ref": "#"}), "only references", ()),
        (described(**{"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}), "refers to itself", ()),
        (described(**{"$schema": "http://127.0.0.1:9/draft"}), "meta-schema", ()),
        (chain(12, 3), "more than 5,000 parts", ()),
    ],
)
def test_what_is_no_schema_to_use(schema: dict[str, JsonValue], detail: str, path: tuple[str, ...]) -> None:
    with pytest.raises(SchemaFault, match=detail) as raised:
        Schema(schema)
    assert raised.value.path == path


def test_a_pattern_takes_no_longer_for_a_text_that_is_made_for_it() -> None:
    schema = Schema(described(properties={"a": {"pattern": "^(a+)+$"}}))
    began = time.process_time()
    assert schema.faults({"a": "a" * 10_000 + "!"}) != []
    assert time.process_time() - began < 5  # backtracking would take longer than the universe is old


async def test_deep_and_huge_input_is_a_fault_and_no_crash() -> None:
    schema = Schema(described(properties={"a": {"type": "integer"}}))
    deep: dict[str, JsonValue] = {}
    for _ in range(2_000):
        deep = {"a": deep}
    assert len(await asyncio.to_thread(schema.faults, deep)) == 1
    assert schema.faults({"a": 10**400}) == []
