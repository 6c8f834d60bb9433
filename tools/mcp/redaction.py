"""Secrets out of what servers say: some echo their credentials in errors."""

from collections.abc import Iterable

from pydantic import JsonValue

HIDDEN = "[secret]"


class Redactor:
    """Replaces `values` wherever they stand."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        # The longest first: one may begin with another.
        self._values = sorted({value for value in values if value}, key=len, reverse=True)

    def text(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, HIDDEN)
        return text

    def json(self, value: JsonValue) -> JsonValue:
        """The same value, with the texts in it redacted."""
        if not self._values:
            return value
        match value:
            case str():
                return self.text(value)
            case list():
                return [self.json(item) for item in value]
            case dict():
                return {self.text(key): self.json(item) for key, item in value.items()}
            case _:
                return value
