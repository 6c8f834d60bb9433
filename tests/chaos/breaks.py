"""Rules of the product, broken on purpose to show that the harness notices: code for `Fleet(prelude=…)`."""

BREAKS = {
    "once": (
        "a tool that must start once is started again by the next worker",
        """
from activities.tools import ToolActivities
async def always(*_): return True
assert hasattr(ToolActivities, "_first_start")
ToolActivities._first_start = always
""",
    ),
    "outbox": (
        "what was accepted while Temporal was away is never delivered",
        """
from activities.sweep import SweepActivities
async def nothing(_): return 0
for name in ("_start_unstarted", "_deliver_asked", "_compare"):
    assert hasattr(SweepActivities, name)
    setattr(SweepActivities, name, nothing)
""",
    ),
    "cursor": (
        "a viewer that comes back is shown one event too few",
        """
import dataclasses
from api.routes import streams
right = streams.start_of
def wrong(*arguments, **options):
    start = right(*arguments, **options)
    return dataclasses.replace(start, seq=start.seq + 1) if 0 < start.seq < arguments[2] else start
streams.start_of = wrong
""",
    ),
}
"""By name: what is broken, and how."""
