"""The program that turns a web page into Markdown: its address and HTML on standard input, the result on standard output.

A process of its own (`read_page` in tools/html.py starts this file by its path): HTML is written by strangers, reading it takes
seconds and hundreds of megabytes in the worst case, and only a process can be bounded, and killed. It imports nothing of ours.

Why `markdownify` on `beautifulsoup4` and `lxml` (MIT, MIT, BSD; 15 MB together), after trying each on pages as they are: blog,
API reference, wiki, shop, tables as layout. `trafilatura` finds main content best on articles, but broke code into a word a
line, dropped blank lines in it, and took whole reference pages for plain text; it brings 60 MB. `html-to-markdown` is the
fastest, and would still need the tree of the page for its main content and its links: 22 MB more. `html2text` is GPL.
"""

import json
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from typing import TypedDict
from urllib.parse import urljoin, urlsplit

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString, PageElement, PreformattedString
from markdownify import MarkdownConverter

MAX_CPU_SECONDS = 10
MAX_MEMORY_BYTES = 1 << 30
MAX_NODES = 50_000
MAX_DEPTH = 100
"""Of the page's content. What is nested deeper keeps its text and loses its form."""
MAX_TITLE_CHARS = 300
MAX_URL_CHARS = 2_000
MAX_COLUMNS = 20

_FURNITURE = frozenset(
    {
        *("aside", "audio", "button", "canvas", "dialog", "embed", "footer", "iframe", "input", "map", "nav", "noscript"),
        *("object", "script", "select", "style", "svg", "template", "textarea", "video"),
    }
)
_ROLES = frozenset({"banner", "complementary", "contentinfo", "dialog", "menu", "navigation", "search"})
_FRAME = frozenset({"breadcrumbs", "cookie-banner", "footer", "header", "menu", "navbar", "sidebar"})
"""What a page without <main> commonly calls the parts around its content."""
_PERMALINKS = frozenset("¶#§🔗")
_LANGUAGE = re.compile(r"(?:^|\s)(?:language|lang|highlight-source|highlight)-([\w+#-]{1,30})")
_SPACE = re.compile(r"\s+")


class Page(TypedDict):
    url: str
    html: str
    max_chars: int


class Markdown(TypedDict):
    title: str
    text: str
    cut: bool


def convert(page: Page) -> Markdown:
    soup = BeautifulSoup(page["html"], "lxml")
    title = _SPACE.sub(" ", soup.title.get_text()).strip()[:MAX_TITLE_CHARS] if soup.title else ""
    base = soup.find("base", href=True)
    url = _joined(page["url"], base["href"]) if base else None
    content = _Content(soup, url or page["url"], page["max_chars"])
    text = _Converter().convert_soup(BeautifulSoup("".join(content.html()), "lxml"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in text.split("\n"))).strip()
    return Markdown(title=title, text=text[: page["max_chars"]], cut=content.cut or len(text) > page["max_chars"])


class _Content:
    """The part of a page that one came for, written anew: without what surrounds it, and no more than will be shown.

    markdownify takes the square of the length, or the depth, of some pages; of these it only ever sees the beginning.
    """

    def __init__(self, soup: BeautifulSoup, url: str, max_chars: int) -> None:
        body = soup.body or soup
        main = body.find_all(lambda tag: tag.name == "main" or tag.get("role") == "main") or body.find_all("article")
        # One only: a page of many articles is a list of them. And not one that a script was to fill, beside text that is there.
        framed = len(main) == 1 and len(main[0].get_text()) * 10 > len(body.get_text())
        self._top: Tag = main[0] if framed else body
        self._framed = framed
        self._url = url
        self._max_chars = max_chars
        self.cut = False
        """Whether there was more, once `html` has ended."""

    def html(self) -> Iterator[str]:
        left: list[tuple[Iterator[PageElement], str]] = [(iter(self._top.contents), "")]
        chars = nodes = preformatted = 0
        while left:
            node = next(left[-1][0], None)
            nodes += 1
            if node is None or self.cut:
                end = left.pop()[1]
                preformatted -= end == "</pre>"
                yield end
            elif isinstance(node, Tag):
                if not self._is_furniture(node):
                    name = node.name if len(left) <= MAX_DEPTH else ""
                    attributes = "".join(f' {key}="{escape(value)}"' for key, value in self._attributes(node))
                    if name:
                        yield f"<{name}{attributes}>"
                    preformatted += name == "pre"
                    left.append((iter(node.contents), f"</{name}>" if name else ""))
            elif isinstance(node, NavigableString) and not isinstance(node, PreformattedString):  # those are comments and such
                chars += len(node.strip())
                self.cut = chars > self._max_chars or nodes > MAX_NODES
                yield escape(node[: self._max_chars] if preformatted else _SPACE.sub(" ", node))
            self.cut = self.cut or nodes > MAX_NODES

    def _is_furniture(self, tag: Tag) -> bool:
        if tag.name in _FURNITURE:
            return True
        names = {*(tag.get("class") or ()), str(tag.get("id") or "")}
        return (
            "hidden" in tag.attrs
            or tag.get("aria-hidden") == "true"
            or tag.get("role") in _ROLES
            or "mw-editsection" in names  # "[edit]" at every heading of a wiki
            or (not self._framed and (not _FRAME.isdisjoint(names) or (tag.name == "header" and tag.parent is self._top)))
        )

    def _attributes(self, tag: Tag) -> Iterator[tuple[str, str]]:
        """What Markdown has a use for."""
        for name in ("href", "src"):
            if target := _joined(self._url, tag.get(name)):
                yield name, target
        if alt := tag.get("alt"):
            yield "alt", str(alt)
        if tag.name in ("pre", "code", "div"):  # may tell a language
            yield "class", " ".join(tag.get("class") or ())
        span = str(tag.get("colspan") or "")
        if span.isdecimal() and len(span) <= 2 and int(span) <= MAX_COLUMNS:
            yield "colspan", span


def _joined(base: str, reference: object) -> str | None:
    """The absolute http(s) or mailto address; None for anything else, and for a place in the same page."""
    if not isinstance(reference, str) or not reference.strip() or reference.startswith("#"):
        return None
    try:
        url = urljoin(base, reference.strip())
        scheme = urlsplit(url).scheme
    except ValueError:
        return None
    return url if scheme in ("http", "https", "mailto") and len(url) <= MAX_URL_CHARS else None


def _language(pre: Tag) -> str:
    for tag in (pre, pre.find("code"), pre.parent, pre.parent.parent if pre.parent else None):
        classes = tag.get("class") if isinstance(tag, Tag) else None
        if classes and (found := _LANGUAGE.search(" ".join(classes))):
            return found[1]
    return ""


class _Converter(MarkdownConverter):
    class Options:
        heading_style = "ATX"
        bullets = "-"
        autolinks = False
        # Escapes are for what renders Markdown. A model reads it, and snake_case as it is.
        escape_asterisks = False
        escape_underscores = False
        code_language_callback = staticmethod(_language)
        table_infer_header = True

    def convert_a(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        label, href = text.strip(), el.get("href")
        if label in _PERMALINKS or not label:
            return ""
        if "_noformat" in parent_tags or not href:
            return text
        if "\n" in label:  # a card; Markdown has no link around blocks
            label = " ".join(line.strip().lstrip("# ") for line in label.splitlines() if line.strip())
        before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
        return f"{before}[{label}]({href}){after}"

    def convert_img(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        return f"![{el['alt']}]({el['src']})" if el.get("src") and el.get("alt") else ""


def main() -> None:
    # The parent kills us in time; these hold when the parent itself was killed. Not every system has both.
    for limit, value in ((resource.RLIMIT_CPU, MAX_CPU_SECONDS), (resource.RLIMIT_AS, MAX_MEMORY_BYTES)):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, value))
    json.dump(convert(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
