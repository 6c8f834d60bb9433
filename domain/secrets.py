"""Secrets by name: what is configured and stored says the name, and only who sends the value looks it up."""

from collections.abc import Mapping


class Secrets:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)
