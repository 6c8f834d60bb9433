"""Events about a session as a whole: its title, and what is added to its instructions."""

from typing import Literal

from domain.payload import Payload, TextContent
from domain.usage import Cost, Usage


class TitleSuggested(Payload):
    """A model has written a title. `session.updated` follows where it was taken: nobody had named the session meanwhile.

    It is under no run: what the call used counts to the session.
    """

    type: Literal["session.title_suggested"] = "session.title_suggested"
    title: str | None
    """None: nothing in the answer could be one."""
    model: str
    model_usage: Usage
    cost: Cost | None = None
    duration_ms: int


class SystemMessage(Payload):
    """What whoever operates the agent tells it, from here on: it goes with the message or the tool result before it.

    As in the `anthropic` package. The model reads it right behind that, as text that says what it is.
    """

    type: Literal["system.message"] = "system.message"
    content: tuple[TextContent, ...]
