"""How urgent work is, as Temporal's priority key: the lower goes first, where more is to be done than can be done at once."""

ORDINARY = 3
"""Somebody may be waiting for it. Temporal's own default."""
BACKGROUND = 4
"""Work in bulk: items of a batch, and runs that were retried by the thousand."""
