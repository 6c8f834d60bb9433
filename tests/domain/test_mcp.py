"""What the model calls the tools of MCP servers."""

import re
from itertools import product

import pytest

from domain.mcp import tool_name


@pytest.mark.parametrize(
    ("server", "tool", "name"),
    [
        ("time", "now", "time__now"),
        ("my-files", "read_file", "my-files__read_file"),
        ("a", "_b", "a___b"),
        # For ever: these are in conversations.
        ("a_", "b", "a___b_a00766a3"),
        ("maps", "find.place", "maps__find_place_fdd5e496"),
    ],
)
def test_a_name(server: str, tool: str, name: str) -> None:
    assert tool_name(server, tool) == name


def test_names_are_what_vendors_take_and_never_clash() -> None:
    parts = ["a", "_", "__", "a_", "_a", "a__a", "a_a", "ä", "a.a", "a" * 40, "a" * 70, "a" * 71, "a b"]
    names = [tool_name(server, tool) for server, tool in product(parts, parts)]

    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", name) for name in names)
