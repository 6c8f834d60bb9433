"""Secrets by name: agents, events and histories hold the name, only the part that needs the value asks for it."""

from collections.abc import Mapping

from domain.errors import UnknownSecret


class Secrets:
    """What `[secrets]` of `perdure.toml` names, with its values. Showing it shows the names."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def get(self, name: str) -> str:
        """The value. Raises UnknownSecret."""
        try:
            return self._values[name]
        except KeyError:
            raise UnknownSecret(f"there is no secret {name!r}; the operator names secrets in perdure.toml") from None
