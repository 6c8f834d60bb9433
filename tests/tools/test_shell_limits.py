"""The limits of the shell tool: commands that take too much, really run."""

import os
import time
from pathlib import Path

import pytest

from domain.tools import ToolContext
from tests.tools.shells import MARKS, QUOTA, python, refused, run
from tools.sandbox import Sandbox, ShellLimits
from tools.sandbox_disk import Disk, Used
from tools.shell import Bash

pytestmark = MARKS


@pytest.fixture
def context(tmp_path: Path) -> ToolContext:
    return ToolContext("wrkspc_1", "sesn_1", "run_1", "toolu_1", tmp_path / "files/wrkspc_1/sesn_1", QUOTA)


THREADS = """
import threading, time
threading.stack_size(1 << 18)
for _ in range(100):
    threading.Thread(target=time.sleep, args=(15,)).start()
"""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("f() { f | f & }; f; sleep 15", "64 processes"),
        (python(THREADS), "64 processes"),
        (python("import os, time\nfor _ in range(4): os.fork()\nx = bytearray(40 << 20)\ntime.sleep(15)"), "256 MB of memory"),
        (
            python("import mmap, time\nm = mmap.mmap(-1, 1 << 30)\nfor n in range(1 << 18): m[n << 12] = 1\ntime.sleep(15)"),
            "memory",
        ),
        ("for n in 1 2 3; do head -c 9000000 /dev/zero > $n; done; sleep 15", "directory holds (20 MB)"),
        ("exec 5> x 6> y; rm x y; head -c 15000000 /dev/zero >&5; head -c 15000000 /dev/zero >&6; sleep 15", "directory holds"),
        ("mkdir a; head -c 15000000 /dev/zero > a/x; chmod 0 a; head -c 15000000 /dev/zero > y; sleep 15", "directory holds"),
        ("for n in $(seq 510); do : > $n; done; sleep 15", "more files"),
        ("cd /tmp; " + python("for n in range(25000): open(str(n), 'w')\nimport time\ntime.sleep(15)"), "more files"),
        ("while mkdir d && cd d; do :; done; sleep 15", "nested too deep"),
    ],
    ids=["forks", "threads", "memory", "shared memory", "disk", "unlinked", "locked folder", "files", "tmp files", "depth"],
)
async def test_too_much_is_stopped(context: ToolContext, command: str, reason: str) -> None:
    began = time.monotonic()
    assert reason in await refused(context, command)
    assert time.monotonic() - began < 14
    assert "fine" in await run(context, "chmod -R u+rwx . 2>/dev/null; find . -mindepth 1 -delete 2>/dev/null; echo fine")
    assert await run(context, "ls -A") == ".perdure\n"


async def test_one_large_file_and_a_full_tmp_are_refused_by_the_system(context: ToolContext) -> None:
    seen = await run(context, "head -c 30000000 /dev/zero > x; truncate -s 1T y; head -c 300000000 /dev/zero > /tmp/x; rm x y")

    assert seen.count("File too large") >= 1
    assert await run(context, "ls -A") == ".perdure\n"


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (ShellLimits(seconds=1), "took longer than 1 seconds"),
        (ShellLimits(seconds=20, cpu_seconds=1), "more than 1 seconds of CPU"),
    ],
    ids=["time", "cpu"],
)
async def test_time_is_limited_and_what_was_printed_is_kept(context: ToolContext, limits: ShellLimits, reason: str) -> None:
    shell = Bash(Sandbox(limits=limits))

    said = await refused(context, "echo so far; trap '' TERM INT HUP XCPU; while :; do :; done", shell)

    assert said.startswith("so far\n[The command")
    assert reason in said


def test_a_sandbox_that_is_not_made_yet_is_not_measured(tmp_path: Path) -> None:
    """On a busy machine bubblewrap names its process long before that has a /tmp of its own."""
    disk = Disk(str(tmp_path), ".perdure", Used(QUOTA.bytes, QUOTA.entries), tmp_entries=0, user=None)

    disk.look(os.getpid())
