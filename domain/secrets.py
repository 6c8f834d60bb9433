"""Secrets by name: agents, events and histories hold the name, only the part that needs the value asks for it."""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from domain.errors import UnknownSecret


class Secrets:
    """What `[secrets]` of `perdure.toml` names, with its values. Showing it shows the names.

    `hosts`: by name, the `host` or `host:port` that agents may have it used for. Whoever writes an agent chooses its
    addresses: a secret without hosts is for programs that the operator set up, and for no agent.
    """

    def __init__(self, values: Mapping[str, str], hosts: Mapping[str, Iterable[str]] | None = None) -> None:
        self._values = dict(values)
        self._hosts = {name: frozenset(named) for name, named in (hosts or {}).items()}

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self.names)})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def get(self, name: str) -> str:
        """The value, for what the operator set up. Raises UnknownSecret."""
        try:
            return self._values[name]
        except KeyError:
            raise UnknownSecret(f"there is no secret {name!r}; the operator names secrets in perdure.toml") from None

    def for_url(self, name: str, url: str) -> str:
        """The value, for an address that an agent names. Raises UnknownSecret, also where it is not for that address."""
        value = self.get(name)
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        usual = parts.port in (None, {"http": 80, "https": 443}.get(parts.scheme))
        if not self._hosts.get(name, frozenset()) & {f"{host}:{parts.port}", *({host} if usual else ())}:
            raise UnknownSecret(f"the secret {name!r} is not for {parts.netloc}; the operator names its hosts in perdure.toml")
        return value
