"""Ports for servers that tests start, and start again."""

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

# Below the ports that systems give to outgoing connections: one of those could take a server's port while it is restarted.
_PORTS = range(15_000, 32_000)
_held: list[int] = []
"""Locks of the ports that this process has handed out; they are let go when it ends."""


def free_port() -> int:
    """A port on loopback that nobody listens on, and that no other test process gets as long as this one lives."""
    locks = Path(tempfile.gettempdir()) / f"test-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    while True:
        port = random.choice(_PORTS)
        lock = os.open(locks / str(port), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            os.close(lock)
            continue
        _held.append(lock)
        return port
