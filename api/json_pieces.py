"""Reads one large JSON object from a file, member by member, and its arrays item by item: none is in memory as a whole."""

import codecs
import json
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, cast

from pydantic import JsonValue

from domain.errors import BadRequest, TooLarge

CHUNK = 1 << 18
MAX_PIECE = 16 << 20
"""Characters of one member, or of one item: more than any event has that came in a request."""
_SPACE = " \t\n\r"


class Piece(NamedTuple):
    member: str
    at: int | None
    """In the member's array; None: it is no array."""
    value: JsonValue


class _Text:
    """The part of the file that is being looked at."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(parse_constant=_no_constant)
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character behind white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of those."""
        found = self.peek()
        if not found or found not in wanted:
            raise _unreadable(f"{' or '.join(wanted)} was expected, {found or 'and not its end'} found")
        self._at += 1
        return found

    def value(self) -> JsonValue:
        self.peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._check_size(len(self._text))
                if not self._more():
                    raise _unreadable(error.msg) from error
                continue
            except (ValueError, RecursionError) as error:
                raise _unreadable("it is nested too deep, or has a number that is too long") from error
            self._check_size(end)
            if end < len(self._text) or not self._more():  # a number may go on behind what was read
                self._at = end
                return cast("JsonValue", value)

    def _check_size(self, end: int) -> None:
        if end - self._at > MAX_PIECE:
            raise TooLarge(f"One of its parts is over {MAX_PIECE >> 20} million characters.")

    def _more(self) -> bool:
        """Read on, twice as much as is waited for: what is decoded anew each time must not add up."""
        if self._ended:
            return False
        rest = self._text[self._at :]
        raw = self._file.read(max(CHUNK, len(rest)))
        self._ended = not raw
        try:
            self._text, self._at = rest + self._decoder.decode(raw, final=self._ended), 0
        except UnicodeDecodeError as error:
            raise _unreadable("it is not UTF-8") from error
        return not self._ended


def pieces(file: BinaryIO) -> Iterator[Piece]:
    """Raises BadRequest for what is no JSON object, TooLarge for a part of it that is too large."""
    text = _Text(file)
    text.take("{")
    if text.peek() != "}":
        while True:
            if text.peek() != '"':
                raise _unreadable("a member's name was expected")
            member = text.value()
            assert isinstance(member, str)
            text.take(":")
            if text.peek() == "[":
                yield from _items(text, member)
            else:
                yield Piece(member, None, text.value())
            if text.take(",}") == "}":
                break
    else:
        text.take("}")
    if text.peek():
        raise _unreadable("something follows its end")


def _items(text: _Text, member: str) -> Iterator[Piece]:
    text.take("[")
    if text.peek() == "]":
        text.take("]")
        return
    index = 0
    while True:
        yield Piece(member, index, text.value())
        index += 1
        if text.take(",]") == "]":
            return


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not a number")


def _unreadable(why: str) -> BadRequest:
    return BadRequest(f"The document is not JSON: {why}.")
