"""Running commands as the shell tool does, and looking for what they leave behind."""

import os
import shlex
import shutil
import time
from collections.abc import Callable

import psutil
import pytest

from domain.errors import ToolFailed
from domain.tools import Quota, ToolContext
from tools.sandbox import Sandbox, ShellLimits
from tools.shell import Bash, BashArguments

WITH_BWRAP = pytest.mark.skipif(
    shutil.which("bwrap") is None and os.environ.get("CI") != "true", reason="bubblewrap is not installed"
)
MARKS = [pytest.mark.single_database, WITH_BWRAP]

MB = 1 << 20
LIMITS = ShellLimits(seconds=20, cpu_seconds=20, memory_bytes=256 * MB, processes=64)
SHELL = Bash(Sandbox(limits=LIMITS))
QUOTA = Quota(bytes=20 * MB, entries=500)


async def run(context: ToolContext, command: str, shell: Bash = SHELL) -> str:
    return await shell.call(BashArguments(command=command), context)


async def refused(context: ToolContext, command: str, shell: Bash = SHELL) -> str:
    with pytest.raises(ToolFailed) as failure:
        await run(context, command, shell)
    return failure.value.message


def python(program: str) -> str:
    return f"/usr/bin/python3 -c {shlex.quote(program)}"


def alive(marker: str) -> list[psutil.Process]:
    """Processes with that in their command line."""
    return [process for process in psutil.process_iter(["cmdline"]) if marker in " ".join(process.info["cmdline"] or [])]


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
