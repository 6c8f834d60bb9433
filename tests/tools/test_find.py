import asyncio
import os

import psutil
import pytest
from pydantic import JsonValue

from domain.errors import ToolFailed
from domain.tools import ToolContext
from tools.find import Glob, Grep

FILES = ("readme.md", "src/main.py", "src/deep/er/main.py", "src/deep/notes.md", ".hidden/x.md")


@pytest.fixture
def files(context: ToolContext) -> ToolContext:
    for age, name in enumerate(FILES):
        path = context.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\nsecond line\r\n")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return context


async def use(tool: Glob | Grep, context: ToolContext, **arguments: JsonValue) -> list[str]:
    return (await tool.call(tool.arguments.model_validate(arguments), context)).splitlines()


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("*.md", ".", ["readme.md"]),
        ("**/*.md", ".", ["readme.md", "src/deep/notes.md", ".hidden/x.md"]),
        ("**", ".", list(FILES)),
        ("src/**/main.py", ".", ["src/main.py", "src/deep/er/main.py"]),
        ("*/*.md", "src", ["src/deep/notes.md"]),
        ("*.rs", ".", ["No files match."]),
        ("[rs]*.md", "./", ["readme.md"]),
        ("**/" * 40 + "x", ".", ["No files match."]),
    ],
)
async def test_glob(files: ToolContext, pattern: str, path: str, expected: list[str]) -> None:
    assert await use(Glob(), files, pattern=pattern, path=path) == expected


async def test_a_glob_of_many_stars_ends(context: ToolContext) -> None:
    deep = context.directory.joinpath(*"abcdefghijklmnopqrst")
    deep.mkdir(parents=True)
    (deep / "file").touch()

    assert await use(Glob(), context, pattern="**/" * 20 + "other") == ["No files match."]


async def test_glob_is_capped(context: ToolContext) -> None:
    context.directory.mkdir()
    for number in range(501):
        (context.directory / str(number)).touch()

    lines = await use(Glob(), context, pattern="*")

    assert len(lines) == 501
    assert lines[-1] == "[cut: 500 of 501 files]"


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("main", ".", ["src/deep/er/main.py:1: src/deep/er/main.py", "src/main.py:1: src/main.py"]),
        (r"^second\b", "readme.md", ["readme.md:2: second line"]),
        ("notes", "src/deep", ["src/deep/notes.md:1: src/deep/notes.md"]),
        ("nothing like it", ".", ["No matches."]),
    ],
)
async def test_grep(files: ToolContext, pattern: str, path: str, expected: list[str]) -> None:
    assert await use(Grep(), files, pattern=pattern, path=path) == expected


async def test_grep_is_capped_and_says_what_it_skipped(context: ToolContext) -> None:
    context.directory.mkdir()
    (context.directory / "a.bin").write_bytes(b"\0x")
    (context.directory / "long.txt").write_text("x" * 100_000 + "\n")
    (context.directory / os.fsdecode(b"odd-\xff.txt")).write_text("x")
    lines = await use(Grep(), context, pattern="x")
    assert [len(line) for line in lines[:1]] == [len("long.txt:1: ") + 500]
    assert lines[1:] == ["odd-\ufffd.txt:1: x", "[1 binary, large or unreadable files were not searched]"]

    (context.directory / "many.txt").write_text("x\n" * 1000)
    lines = await use(Grep(), context, pattern="x", path="many.txt")
    assert len(lines) == 201
    assert lines[-1].startswith("[cut after 200 matches")


async def test_grep_explains_a_bad_pattern(files: ToolContext) -> None:
    with pytest.raises(ToolFailed, match="no regular expression: missing"):
        await use(Grep(), files, pattern="(")


@pytest.fixture
def catastrophe(context: ToolContext) -> str:
    context.directory.mkdir()
    (context.directory / "file.txt").write_text("a" * 50 + "b")
    return r"^(a+)+$"


def searches() -> list[psutil.Process]:
    """The search processes of this test process; its fixtures have children too."""
    return [child for child in psutil.Process().children() if any("grep_process" in word for word in child.cmdline())]


async def test_a_catastrophic_pattern_is_stopped(
    context: ToolContext, catastrophe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.find.GREP_SECONDS", 0.5)
    call = asyncio.create_task(use(Grep(), context, pattern=catastrophe))
    ticks = 0
    async with asyncio.timeout(5):
        while not call.done():
            await asyncio.sleep(0.01)
            ticks += 1

    with pytest.raises(ToolFailed, match="simpler pattern"):
        await call
    assert ticks > 5  # everything else went on meanwhile
    assert searches() == []


async def test_cancelling_ends_the_search(context: ToolContext, catastrophe: str) -> None:
    times = 20
    descriptors = psutil.Process().num_fds()
    for _ in range(times):
        call = asyncio.create_task(use(Grep(), context, pattern=catastrophe))
        async with asyncio.timeout(5):
            while not searches():
                await asyncio.sleep(0.01)

        call.cancel()
        async with asyncio.timeout(5):
            with pytest.raises(asyncio.CancelledError):
                await call

        assert searches() == []
    # Other tests' fixtures open a few of their own meanwhile; a search that leaked would show twenty times.
    assert psutil.Process().num_fds() < descriptors + times
