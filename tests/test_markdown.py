"""What somebody wrote stays in its place in a Markdown transcript."""

import pytest
from hypothesis import example, given, settings, strategies
from markdown_it import MarkdownIt

from api.markdown import code, inline, quote

pytestmark = pytest.mark.single_database

FRAGMENTS = [
    "```",
    "````",
    "~~~",
    "<details>",
    "</details>",
    "<!--",
    "-->",
    "<b",
    ">",
    "- ",
    "1. ",
    "> ",
    "  ",
    "    ",
    "\t",
    "\n",
]
TEXTS = strategies.lists(
    strategies.sampled_from([*FRAGMENTS, "\n", "\n\n", "`", "``", "x", "\\", "[a]: <b>", "===", "\r", "\u2028"])
).map("".join)
PARSER = MarkdownIt("commonmark")


def check_contained(block: str) -> None:
    tokens = PARSER.parse(f"{block}\n\n## After\n")
    assert [token.type for token in tokens[-3:]] == ["heading_open", "inline", "heading_close"], block
    assert (tokens[-2].content, tokens[-3].level) == ("After", 0), block
    flat = [inner for token in tokens for inner in (token, *(token.children or ()))]
    assert not [token for token in flat if token.type in ("html_block", "html_inline")], block


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(text=TEXTS)
@example(text="- x\n  ```\n  y\n<details>")  # the list's end is the fence's, too
@example(text="``` a ` b\n<details>")  # no fence at all
@example(text="`\nx ` <details> ` y")  # code that began in the line before
def test_nothing_breaks_out(text: str) -> None:
    check_contained(quote(text))
    check_contained(code(text))
    check_contained(f"# {inline(text)}")
    assert code(text).splitlines()[0].strip("`") == ""


def test_code_is_shown_as_it_is() -> None:
    assert quote("See:\n```html\n<b>\n```\nand `<i>`, <u>") == "> See:\n> ```html\n> <b>\n> ```\n> and `&lt;i>`, &lt;u>"
