import asyncio
import itertools
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from domain.errors import ToolFailed
from domain.tools import Quota, ToolContext
from tests.tools.conftest import tool_use
from tools.files import Edit, Read, Write
from tools.find import Glob, Grep

AnyTool = Read | Write | Edit | Glob | Grep
SECRET = "the secret outside"


async def use(tool: AnyTool, context: ToolContext, **arguments: JsonValue) -> str:
    return await tool.call(tool.arguments.model_validate(arguments), context)


async def write(context: ToolContext, path: str, content: str, id: str = "toolu_w") -> str:
    return await use(Write(), tool_use(context.directory, id), file_path=path, content=content)


ATTEMPTS: dict[str, Callable[[ToolContext, str], "asyncio.Future[str]"]] = {
    "read": lambda context, path: asyncio.ensure_future(use(Read(), context, file_path=path)),
    "write": lambda context, path: asyncio.ensure_future(use(Write(), context, file_path=path, content="overwritten")),
    "edit": lambda context, path: asyncio.ensure_future(
        use(Edit(), context, file_path=path, old_string="secret", new_string="overwritten")
    ),
    "glob": lambda context, path: asyncio.ensure_future(use(Glob(), context, pattern="**/*", path=path)),
    "grep": lambda context, path: asyncio.ensure_future(use(Grep(), context, pattern=".", path=path)),
}


@pytest.mark.parametrize("tool", ATTEMPTS)
@pytest.mark.parametrize(
    "path",
    [
        "../outside/secret.txt",
        "../outside",
        "inner/../../outside/secret.txt",
        "./inner/./../../outside/secret.txt",
        "/etc/passwd",
        "//etc/passwd",
        "{outside}/secret.txt",
        "{inside}/inner/file.txt",
        "link.txt",
        "chained.txt",
        "dangling.txt",
        "linked/secret.txt",
        "linked/new.txt",
        "linked",
        "inner/linked/secret.txt",
        "self/self",
        "loop",
        "fifo",
        "device",
        "socket",
        "inner/file.txt/below",
        "nul\0/x",
        ".perdure/receipt",
        "./.PERDURE/receipt",
        "x" * 300,
        "x" * 2000,
        "d/" * 60 + "x",
    ],
)
async def test_no_path_leads_out(context: ToolContext, tmp_path: Path, tool: str, path: str) -> None:
    inside, outside = context.directory, tmp_path / "outside"
    (inside / "inner").mkdir(parents=True)
    (inside / "inner/file.txt").write_text("fine")
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    (inside / "link.txt").symlink_to(outside / "secret.txt")
    (inside / "chained.txt").symlink_to("link.txt")
    (inside / "dangling.txt").symlink_to(outside / "new.txt")
    (inside / "linked").symlink_to(outside)
    (inside / "inner/linked").symlink_to("../../outside")
    (inside / "self").symlink_to(".")
    (inside / "loop").symlink_to("loop")
    (inside / "device").symlink_to("/dev/zero")
    os.mkfifo(inside / "fifo")
    os.mknod(inside / "socket", stat.S_IFSOCK | 0o600)

    with pytest.raises(ToolFailed) as failure:
        await asyncio.wait_for(ATTEMPTS[tool](context, path.format(inside=inside, outside=outside)), 5)

    assert SECRET not in failure.value.message
    if "{" not in path:
        assert str(tmp_path) not in failure.value.message
    assert {file.name: file.read_text() for file in outside.iterdir()} == {"secret.txt": SECRET}
    assert (inside / "inner/file.txt").read_text() == "fine"


async def test_a_folder_swapped_for_a_link_meanwhile_is_not_followed(context: ToolContext, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file.txt").write_text(SECRET)
    folder = context.directory / "folder"
    (context.directory / "real").mkdir(parents=True)
    (context.directory / "real/file.txt").write_text("fine")
    (context.directory / "link").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        for number in itertools.count():
            for name in ("real", "link"):
                try:
                    os.rename(context.directory / name, folder)
                    os.rename(folder, context.directory / name)
                except OSError:  # a write made the folder while there was none
                    os.rename(folder, context.directory / f"made-{number}-{name}")
            if stop.is_set():
                return

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen: set[str] = set()
    try:
        for number in range(150):
            for attempt in (
                use(Read(), context, file_path="folder/file.txt"),
                write(context, "folder/file.txt", "fine", str(number)),
            ):
                try:
                    seen.add(await attempt)
                except ToolFailed as failure:
                    seen.add(failure.message)
    finally:
        stop.set()
        swapper.join()

    assert SECRET not in seen
    assert (outside / "file.txt").read_text() == SECRET


async def test_searches_do_not_follow_links(context: ToolContext, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text(SECRET)
    await write(context, "mine.txt", "no secret")
    (context.directory / "linked").symlink_to(outside)
    (context.directory / "link.txt").symlink_to(outside / "secret.txt")
    os.mkfifo(context.directory / "fifo")

    assert await use(Glob(), context, pattern="**/*") == "mine.txt"
    assert await use(Grep(), context, pattern="secret") == "mine.txt:1: no secret"


async def test_write_makes_a_private_directory_and_folders(context: ToolContext) -> None:
    assert await write(context, "a/b/c.txt", "grüße\n") == "Wrote 8 bytes to a/b/c.txt."

    assert (context.directory / "a/b/c.txt").read_bytes() == "grüße\n".encode()
    assert stat.S_IMODE(context.directory.stat().st_mode) == 0o700
    assert await use(Read(), context, file_path="./a//b/c.txt") == "grüße"


async def test_read_a_range_and_a_long_file(context: ToolContext) -> None:
    await write(context, "lines.txt", "".join(f"line {n}\n" for n in range(1, 20_001)))

    assert await use(Read(), context, file_path="lines.txt", view_range=[3, 4]) == "line 3\nline 4"
    assert await use(Read(), context, file_path="lines.txt", view_range=[20_000, 0]) == "line 20000"
    whole = await use(Read(), context, file_path="lines.txt")
    assert len(whole) < 50_200
    assert whole.splitlines()[-1].startswith("[cut in line 5111 of 20000")
    with pytest.raises(ToolFailed, match="20000 lines"):
        await use(Read(), context, file_path="lines.txt", view_range=[20_001, 0])


async def test_read_refuses_what_is_no_text_or_too_large(context: ToolContext) -> None:
    context.directory.mkdir()
    (context.directory / "binary").write_bytes(b"\x7fELF\0\0")
    with open(context.directory / "huge", "w") as file:
        file.truncate(10_000_001)

    for path, reason in (("binary", "no text"), ("huge", "larger"), ("none", "no such file"), (".", "folder")):
        with pytest.raises(ToolFailed, match=reason):
            await use(Read(), context, file_path=path)


async def test_size_limits(context: ToolContext) -> None:
    await write(context, "most.txt", "x" * 1_000_000)
    with pytest.raises(ToolFailed, match="1 MB"):
        await write(context, "more.txt", "x" * 1_000_001, "toolu_1")
    with pytest.raises(ToolFailed, match="larger"):
        await use(Edit(), context, file_path="most.txt", old_string="x", new_string="xy" * 1000, replace_all=True)
    with open(context.directory / "ballast", "w") as file:
        file.truncate(Quota().bytes - 1_000_000)

    await write(context, "most.txt", "y" * 1_000_000, "toolu_2")
    with pytest.raises(ToolFailed, match="full"):
        await write(context, "one-more.txt", "x", "toolu_3")


async def test_file_count_limit(context: ToolContext) -> None:
    few = replace(context, quota=Quota(entries=100))
    few.directory.mkdir()
    for number in range(100):
        (few.directory / str(number)).touch()

    with pytest.raises(ToolFailed, match="full"):
        await use(Write(), few, file_path="one-more.txt", content="x")


@pytest.mark.parametrize(
    ("old", "replace_all", "result"),
    [
        ("two", False, "one 2 aaa one"),
        ("one", True, "2 two aaa 2"),
    ],
)
async def test_edit(context: ToolContext, old: str, replace_all: bool, result: str) -> None:
    await write(context, "file.txt", "one two aaa one")
    (context.directory / "file.txt").chmod(0o750)

    await use(Edit(), context, file_path="file.txt", old_string=old, new_string="2", replace_all=replace_all)

    assert (context.directory / "file.txt").read_text() == result
    assert stat.S_IMODE((context.directory / "file.txt").stat().st_mode) == 0o750


@pytest.mark.parametrize(
    ("old", "reason"),
    [("one", "more than once"), ("aa", "more than once"), ("three", "does not occur"), ("2", "are the same")],
)
async def test_edits_that_are_refused(context: ToolContext, old: str, reason: str) -> None:
    await write(context, "file.txt", "one two aaa one")

    with pytest.raises(ToolFailed, match=reason):
        await use(Edit(), context, file_path="file.txt", old_string=old, new_string="2")

    assert (context.directory / "file.txt").read_text() == "one two aaa one"


async def test_a_repeated_call_is_done_once(context: ToolContext) -> None:
    await write(context, "file.txt", "one")
    edit = {"file_path": "file.txt", "old_string": "one", "new_string": "one one"}
    first = await use(Edit(), context, **edit)

    assert await use(Edit(), context, **edit) == first
    assert (context.directory / "file.txt").read_text() == "one one"
    await write(context, "file.txt", "one")  # as late as this, the first write's retry must not undo the edit
    assert (context.directory / "file.txt").read_text() == "one one"


class Killed(BaseException):
    """Nothing catches it: as good as SIGKILL at that moment."""


@pytest.mark.parametrize("renamed", [False, True], ids=["before the rename", "after the rename"])
async def test_a_call_killed_in_the_middle_is_done_once(
    context: ToolContext, monkeypatch: pytest.MonkeyPatch, renamed: bool
) -> None:
    await write(context, "file.txt", "one")
    rename = os.rename

    def killed(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        if renamed:
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        raise Killed

    edit = {"file_path": "file.txt", "old_string": "one", "new_string": "one one"}
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(Killed):
            await use(Edit(), context, **edit)
    assert (context.directory / "file.txt").read_text() == ("one one" if renamed else "one")

    assert await use(Edit(), context, **edit) == "Replaced 1 occurrence in file.txt."
    assert (context.directory / "file.txt").read_text() == "one one"


async def test_a_failed_rename_is_not_remembered_as_done(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", full)
        with pytest.raises(ToolFailed, match="disk is full"):
            await write(context, "file.txt", "one")

    await write(context, "file.txt", "one")
    assert (context.directory / "file.txt").read_text() == "one"


async def test_parallel_edits_of_one_file_all_count(context: ToolContext) -> None:
    words = [f"<{n}>" for n in range(24)]
    await write(context, "file.txt", " ".join(words))

    await asyncio.gather(
        *(
            use(Edit(), tool_use(context.directory, word), file_path="file.txt", old_string=word, new_string="done")
            for word in words
        )
    )

    assert (context.directory / "file.txt").read_text() == " ".join(["done"] * 24)


async def test_receipts_are_few_and_out_of_sight(context: ToolContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.directory.MAX_RECEIPTS", 10)
    for number in range(40):
        await write(context, "file.txt", "secret", f"toolu_{number}")

    assert 1 <= len(list((context.directory / ".perdure").iterdir())) <= 10
    assert await use(Glob(), context, pattern="**/*") == "file.txt"
    assert "receipt" not in await use(Grep(), context, pattern="Wrote")
