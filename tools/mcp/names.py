"""What the model calls a server's tool: `server__tool`, where vendors allow it."""

import hashlib
import re

MAX_CHARS = 64
"""Both Anthropic's and OpenAI's API take `[a-zA-Z0-9_-]{1,64}`."""
_HASH_CHARS = 8
_OTHER = re.compile(r"[^a-zA-Z0-9_-]")
_SERVER = re.compile(r"[a-zA-Z0-9-]+(_[a-zA-Z0-9-]+)*")
"""Without two underscores in a row or one at an end, so that the first `__` of a name is where the server's ends."""


def wire_name(server: str, tool: str) -> str:
    """The same for the same two names, and different for different ones: what had to be changed gets a hash of both."""
    plain = f"{server}__{tool}"
    if _SERVER.fullmatch(server) and tool and not _OTHER.search(plain) and len(plain) <= MAX_CHARS:
        return plain
    digest = hashlib.sha256(f"{server}\0{tool}".encode("utf-8", "replace")).hexdigest()[:_HASH_CHARS]
    return f"{_OTHER.sub('_', plain)[: MAX_CHARS - _HASH_CHARS - 1]}_{digest}"
