"""Titles of sessions: what a model is asked that is to write one, and what is taken of its answer."""

import re

from domain.completions import CompletionRequest, Message, Text

SYSTEM = (
    "You write titles for conversations. A title is two to six words in the conversation's own language that say what it is "
    "about. Answer with the title alone: no quotes, no full stop, no explanation."
)
ASK = "Write the title of this conversation. Answer with the title alone."
MAX_TOKENS = 1000
"""A title takes ten. The rest is for models that reason first, and would else have used up all of it before they answer."""
MAX_CHARS = 80
QUOTED_CHARS = 4000
"""Of the question, and of the answer: what a conversation is about is said at its beginning."""

_REASONING = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_LABEL = re.compile(r"^title\s*[:\-–—]\s*", re.IGNORECASE)
_AROUND = " \t\"'`*_#«»“”„‘’‚‹›"


def title_request(model: str, question: str, answer: str | None, attempt: int = 1) -> CompletionRequest:
    """The call of `model` (its name behind the colon) that writes the title of what began with `question`."""
    said = (Message(role="user", content=(Text(text=_shortened(question) or "…"),)),)
    if answer and (text := _shortened(answer)):
        said += (Message(role="assistant", content=(Text(text=text),)), Message(role="user", content=(Text(text=ASK),)))
    else:
        said = (Message(role="user", content=(*said[0].content, Text(text=ASK))),)
    return CompletionRequest(model=model, messages=said, system=SYSTEM, max_output_tokens=MAX_TOKENS, attempt=attempt)


def title_of(answer: str) -> str | None:
    """The first line of a model's answer as a title: without quotes, labels and Markdown, and not long. None: there is none."""
    for line in _REASONING.sub("", answer).splitlines():
        title = " ".join(_UNSEEN.sub(" ", line).split()).strip(_AROUND)
        title = _LABEL.sub("", title).strip(_AROUND).rstrip(".").rstrip(_AROUND)
        if title and any(letter.isalnum() for letter in title):
            return title if len(title) <= MAX_CHARS else f"{title[: MAX_CHARS - 1].rstrip()}…"
    return None


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= QUOTED_CHARS else f"{text[:QUOTED_CHARS]} […]"
