"""What cli.py gives to every command: a way to the service and a screen, each made when it is first used.

Nothing heavy is imported here or at the top of a module of commands: `perdure --help` reads all of them.
"""

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from commands.client import Client
    from commands.show import Screen


class Failed(Exception):
    """Ends the command with a message and exit code 2. `code` is the service's, when the service refused."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Context:
    def __init__(self, connect: "Callable[[], Client]") -> None:
        self._connect = connect

    @cached_property
    def client(self) -> "Client":
        return self._connect()

    @cached_property
    def screen(self) -> "Screen":
        from commands.show import Screen  # noqa: PLC0415  # Rich; see above

        return Screen()

    def close(self) -> None:
        if "client" in self.__dict__:  # only if the property was ever asked for
            self.client.connection.close()


def of(context: typer.Context) -> Context:
    """The Context that cli.py has put there."""
    found = context.find_object(Context)
    assert found is not None
    return found
