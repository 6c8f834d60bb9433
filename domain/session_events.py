"""Events about a session as a whole, under no run."""

from typing import Literal

from domain.payload import Payload
from domain.usage import Cost, Usage


class TitleSuggested(Payload):
    """A model has written a title. `session.updated` follows where it was taken: nobody had named the session meanwhile.

    What the call used counts to the session, and to no run.
    """

    type: Literal["session.title_suggested"] = "session.title_suggested"
    title: str | None
    """None: nothing in the answer could be one."""
    model: str
    model_usage: Usage
    cost: Cost | None = None
    duration_ms: int
