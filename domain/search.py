"""Finding text by its words: what is indexed, what people type, and what is shown of a match.

One notion of a word for both databases, so that they find the same: letters and digits, without case and accents. Scripts
that write without spaces are taken character by character, and what is typed in them is a phrase.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

INDEXED_CHARS = 20_000
"""What is further down in a text is not found."""
MAX_TERMS = 12
MIN_PREFIX = 3
"""Shorter beginnings of words are in too many texts to look for."""
_MAX_WORD = 64
_SNIPPET_CHARS = 160
_BEFORE_CHARS = 40
_MARKS = "\u0300-\u036f"
_SINGLE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_SINGLE}]|(?:[^\\W_{_SINGLE}][{_MARKS}]*)+")
_ASCII_WORD = re.compile("[a-z0-9]+")
_ACCENT = re.compile(f"[{_MARKS}]")
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')


@dataclass(frozen=True)
class Term:
    """Words that stand beside each other; the last may be only the beginning of one."""

    words: tuple[str, ...]
    prefix: bool = False

    @property
    def padded(self) -> str:
        """As it stands in indexed words that have a space before and after them."""
        return f" {' '.join(self.words)}{'' if self.prefix else ' '}"


@dataclass(frozen=True)
class Part:
    """A piece of a snippet."""

    text: str
    match: bool


def indexed(text: str) -> str:
    """The text's words, with a space between them."""
    text = text[:INDEXED_CHARS]
    if text.isascii():
        return " ".join(word[:_MAX_WORD] for word in _ASCII_WORD.findall(text.lower()))
    return " ".join(word for word, _, _ in _words(text))


def terms(query: str) -> tuple[Term, ...]:
    """What is asked for: words and "quoted phrases", all of them, the last word perhaps not typed to its end.

    Nothing that is typed is a fault; signs are as good as spaces.
    """
    found: list[Term] = []
    for typed in _TERM.finditer(query):
        words = tuple(word for word, _, _ in _words(typed[0]))
        if words:
            found.append(Term(words, prefix=typed[1] is None and typed.end() == len(query.rstrip()) and _long(words[-1])))
    return tuple(dict.fromkeys(found))[:MAX_TERMS]


def _long(word: str) -> bool:
    return len(word) >= MIN_PREFIX


def snippet(text: str, wanted: Sequence[Term]) -> tuple[Part, ...]:
    """The piece of the text that has the most of the terms, in one line, with what matched apart."""
    text = text[:INDEXED_CHARS]
    spans = sorted(_spans(list(_words(text)), wanted))
    begin, end = _window(text, spans)
    parts = [Part("…", False)] if begin > 0 else []
    place = begin
    for start, stop, _ in spans:
        if start >= place and stop <= end:
            parts += [Part(text[place:start], False), Part(text[start:stop], True)]
            place = stop
    parts.append(Part(text[place:end] + ("…" if end < len(text) else ""), False))
    return tuple(Part(re.sub(r"\s+", " ", part.text), part.match) for part in parts if part.text)


def _spans(words: Sequence[tuple[str, int, int]], wanted: Sequence[Term]) -> Iterator[tuple[int, int, int]]:
    """Where in the text each term stands: begin, end, and the term's number."""
    for number, term in enumerate(wanted):
        *whole, last = term.words
        count = len(term.words)
        for place in range(len(words) - count + 1):
            final = words[place + count - 1][0]
            if (final == last or (term.prefix and final.startswith(last))) and all(
                words[place + index][0] == word for index, word in enumerate(whole)
            ):
                yield words[place][1], words[place + count - 1][2], number


def _window(text: str, spans: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    if not spans:
        return 0, _boundary(text, _SNIPPET_CHARS)

    def terms_near(start: int) -> int:
        last = start + _SNIPPET_CHARS - _BEFORE_CHARS
        return len({number for begin, end, number in near if begin >= start and end <= last})

    near = spans[:50]
    first = max((start for start, _, _ in near), key=lambda start: (terms_near(start), -start))
    begin = 0 if first <= _BEFORE_CHARS else text.find(" ", first - _BEFORE_CHARS, first) + 1 or first
    longest = max(end for start, end, _ in near if start == first)
    return begin, max(_boundary(text, begin + _SNIPPET_CHARS), longest)


def _boundary(text: str, end: int) -> int:
    """The end of a word, not far before that place."""
    if end >= len(text):
        return len(text)
    space = text.rfind(" ", end - _BEFORE_CHARS, end)
    return end if space == -1 else space


def _words(text: str) -> Iterator[tuple[str, int, int]]:
    for found in _WORD.finditer(text):
        for word in _folded(found[0]):
            yield word[:_MAX_WORD], found.start(), found.end()


def _folded(word: str) -> Sequence[str]:
    if word.isascii():
        return (word.lower(),)
    apart = unicodedata.normalize("NFKD", word.casefold())
    return _WORD.findall(unicodedata.normalize("NFC", _ACCENT.sub("", apart)))
