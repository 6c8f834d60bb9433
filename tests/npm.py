"""The packages from npm that tests use."""

import fcntl
import os
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

NODE = Path(__file__).parent / "node"
LOCK = NODE / "package-lock.json"
INSTALLED = NODE / "node_modules" / ".package-lock.json"


def unavailable(reason: str) -> NoReturn:
    """In CI nothing is skipped."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(f"NOT TESTED: {reason}")


def install() -> None:
    """`npm ci`, once for a lock file; other test processes wait for it."""
    with (NODE / "package.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if INSTALLED.exists() and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime:
            return
        done = subprocess.run(["npm", "ci"], cwd=NODE, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        unavailable(f"npm ci failed: {done.stderr[-500:]}")
