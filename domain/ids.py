"""Ids: a prefix that says what it is, then a UUIDv7 in Crockford's base 32, so that they sort by time."""

import uuid_utils

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: str) -> str:
    """Return a fresh id such as `run_01kf3x…`: prefix, underscore, 26 characters, ordered by creation time."""
    number = uuid_utils.uuid7().int
    return f"{prefix}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def title_id(session_id: str) -> str:
    """The id of the workflow that names a session: there is one, once."""
    return f"title-{session_id}"


def settle_id(run_id: str) -> str:
    """The id of the workflow that settles a run that was terminated."""
    return f"settle-{run_id}"
