"""Built-in tools on the files of the run's own directory: `read`, `write`, `edit`.

Names and arguments are those of the toolset `agent_toolset_20260401` in the `anthropic` package.
"""

import asyncio
from typing import Annotated

from pydantic import BaseModel, Field

from domain.errors import ToolFailed
from domain.strict import Strict
from domain.tools import Effect, ToolContext
from tools.directory import MAX_WRITE_BYTES, Change, RunDirectory
from tools.grep_process import is_binary

MAX_READ_CHARS = 50_000

FilePath = Annotated[str, Field(min_length=1, description="Path of the file, relative to your directory.")]


class ReadArguments(Strict):
    file_path: FilePath
    view_range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="First and last line to return, counted from 1; a last line of 0 or less means the end of the file.",
    )


class WriteArguments(Strict):
    file_path: FilePath
    content: str = Field(description="The whole content of the file.")


class EditArguments(Strict):
    file_path: FilePath
    old_string: str = Field(min_length=1, description="The text to replace, exactly as it is in the file.")
    new_string: str = Field(description="The text to put in its place.")
    replace_all: bool = Field(default=False, description="Replace every occurrence; otherwise there must be exactly one.")


class Read:
    name = "read"
    description = "Read a text file in your directory, whole or a range of its lines."
    arguments: type[BaseModel] = ReadArguments
    effect = Effect.READ
    timeout_seconds = 30.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, ReadArguments)
        return await asyncio.to_thread(_read, arguments, context)


class Write:
    """Idempotent: the directory keeps a receipt for each tool use (`RunDirectory.replace`), so that a retry does not undo
    what another call wrote to the same file in the meantime."""

    name = "write"
    description = "Write a text file in your directory, replacing it if it is there. Folders are made as needed."
    arguments: type[BaseModel] = WriteArguments
    effect = Effect.IDEMPOTENT
    timeout_seconds = 30.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, WriteArguments)
        return await asyncio.to_thread(_write, arguments, context)


class Edit:
    """Idempotent by the same receipts. Without them a retry would not find the old text any more and report a failure of
    what was done, or replace it once more where the new text contains the old."""

    name = "edit"
    description = "Replace a text in a file in your directory. The text must occur exactly once, unless replace_all is set."
    arguments: type[BaseModel] = EditArguments
    effect = Effect.IDEMPOTENT
    timeout_seconds = 30.0
    asks = False

    async def call(self, arguments: BaseModel, context: ToolContext) -> str:
        assert isinstance(arguments, EditArguments)
        return await asyncio.to_thread(_edit, arguments, context)


def _read(arguments: ReadArguments, context: ToolContext) -> str:
    path = arguments.file_path
    with RunDirectory(context.directory) as directory:
        data = directory.read(path)
    if is_binary(data):
        raise ToolFailed(f"{path}: it is no text file")
    # Not splitlines(): that also breaks at form feeds and the like, and an editor counts only newlines.
    lines = data.decode("utf-8", "replace").removesuffix("\n").split("\n")
    first, last = arguments.view_range or (1, 0)
    if last <= 0 or last > len(lines):
        last = len(lines)
    if not 1 <= first <= last:
        raise ToolFailed(f"{path}: the file has {len(lines)} lines, and there are none from {first} to {last}")
    text = "\n".join(lines[first - 1 : last])
    if len(text) <= MAX_READ_CHARS:
        return text
    shown = text[:MAX_READ_CHARS]
    at = first + shown.count("\n")
    return f"{shown}\n[cut in line {at} of {len(lines)} after {MAX_READ_CHARS:,} characters: go on with view_range [{at}, 0]]"


def _write(arguments: WriteArguments, context: ToolContext) -> str:
    content = arguments.content.encode()

    def change(_: bytes | None) -> Change:
        return Change(content, f"Wrote {len(content)} bytes to {arguments.file_path}.")

    with RunDirectory(context.directory, context.quota) as directory:
        return directory.replace(arguments.file_path, context.idempotency_key, change)


def _edit(arguments: EditArguments, context: ToolContext) -> str:
    path, old, new = arguments.file_path, arguments.old_string, arguments.new_string

    def change(present: bytes | None) -> Change:
        if present is None:
            raise ToolFailed(f"{path}: no such file or folder")
        if len(present) > MAX_WRITE_BYTES:
            raise ToolFailed(f"{path}: a file that is edited has at most {MAX_WRITE_BYTES // 1_000_000} MB")
        try:
            text = present.decode()
        except UnicodeDecodeError:
            raise ToolFailed(f"{path}: it is no UTF-8 text") from None
        if old == new:
            raise ToolFailed(f"{path}: old_string and new_string are the same")
        first = text.find(old)
        if first < 0:
            raise ToolFailed(f"{path}: old_string does not occur in the file")
        # find() from the next character also sees an occurrence that overlaps the first, which count() does not.
        if not arguments.replace_all and text.find(old, first + 1) >= 0:
            raise ToolFailed(f"{path}: old_string occurs more than once; add text around it, or set replace_all")
        count = text.count(old) if arguments.replace_all else 1
        # Measured before it is built: a million short texts replaced by long ones would fill the memory.
        if len(present) + count * (len(new.encode()) - len(old.encode())) > MAX_WRITE_BYTES:
            raise ToolFailed(f"{path}: the file would be larger than {MAX_WRITE_BYTES // 1_000_000} MB")
        return Change(text.replace(old, new).encode(), f"Replaced {count} occurrence{'s' * (count != 1)} in {path}.")

    with RunDirectory(context.directory, context.quota) as directory:
        return directory.replace(path, context.idempotency_key, change)
