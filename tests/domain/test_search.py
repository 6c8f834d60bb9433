"""Words: what counts as one, and what is shown where one is found."""

import pytest

from domain.search import Part, indexed, snippet, terms

pytestmark = pytest.mark.single_database


def marked(text: str, query: str) -> list[str]:
    return [part.text for part in snippet(text, terms(query)) if part.match]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Cat's-eye, 3rd", "the cat s eye 3rd"),
        ("snake_case a.b@c.org", "snake case a b c org"),
        ("Café CAFE\u0301 straße ﬁn", "cafe cafe strasse fin"),
        ("Ёлка İstanbul", "елка istanbul"),
        ("東京の天気 is 良い", "東 京 の 天 気 is 良 い"),
        ("½ 🦉 \x00 —", "1 2"),
        ("x" * 100, "x" * 64),
    ],
)
def test_words(text: str, words: str) -> None:
    assert indexed(text) == words


def test_what_is_typed() -> None:
    assert [(term.words, term.prefix) for term in terms('Red "Big  APPLE" gre')] == [
        (("red",), False),
        (("big", "apple"), False),
        (("gre",), True),
    ]
    assert [(term.words, term.prefix) for term in terms('red" or "gr')] == [
        (("red",), False),
        (("or",), False),
        (("gr",), False),
    ]
    assert [(term.words, term.prefix) for term in terms("don't NEAR(a* b)")] == [
        (("don", "t"), False),
        (("near", "a"), False),
        (("b",), False),
    ]
    assert terms('"" *()- ""') == ()


def test_a_snippet_shows_the_place_that_has_most() -> None:
    text = f"apple first. {'filler ' * 100}the green\napple is here {'filler ' * 100}"

    parts = snippet(text, terms("green apple"))

    assert [part.text for part in parts if part.match] == ["green", "apple"]
    whole = "".join(part.text for part in parts)
    assert "the green apple is here" in whole
    assert whole.startswith("…filler")
    assert whole.endswith("filler…")
    assert len(whole) < 200


def test_a_snippet_marks_what_was_found_as_it_was_written() -> None:
    assert marked("Ein Café an der Straße", "cafe strasse") == ["Café", "Straße"]
    assert marked("to be or not to be", '"not to be"') == ["not to be"]
    assert marked("interesting", "inter") == ["interesting"]
    assert marked("天気は東京", "東京") == ["東京"]
    assert snippet("a <b>bold</b> word", terms("bold")) == (
        Part("a <b>", False),
        Part("bold", True),
        Part("</b> word", False),
    )
    assert snippet("", terms("x")) == ()
    assert marked("y" * 5000 + " z", "z") == ["z"]
