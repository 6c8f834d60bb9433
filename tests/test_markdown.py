"""What somebody wrote stays in its place in a Markdown transcript, and is there as what became of it."""

import pytest
from hypothesis import example, given, settings, strategies
from markdown_it import MarkdownIt

from api.markdown import code, inline, quote
from tests.conversations import say
from tests.service import Workspace, is_delta

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


def test_a_message_that_came_too_late_and_was_withdrawn_is_not_shown_as_read(workspace: Workspace) -> None:
    run = workspace.start({"text": "It begins", "words": 400, "delay_ms": 5})
    workspace.stream(f"/v1/runs/{run.id}/events/stream", until=is_delta)
    path = f"/v1/sessions/{run.row['session_id']}"
    workspace.post(f"{path}/pause", {"mode": "step"})  # so that the message waits for its turn
    late = workspace.post(f"{path}/messages", {"content": "Never read.", "on_busy": "steer"})["event"]
    run.command("cancel")
    run.wait()
    assert workspace.http.delete(f"{path}/queue/{late['id']}").status_code == 200
    workspace.post(f"{path}/resume")
    say(workspace, run.row["session_id"], {"text": "On."}).wait()

    text = workspace.http.get(f"{path}/export", params={"format": "markdown"}).text

    (heading,) = [part.splitlines()[0] for part in text.split("## ") if "> Never read." in part]
    assert heading.endswith("withdrawn before it was read")
