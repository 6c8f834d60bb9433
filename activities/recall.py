"""What a worker has read once and need not read again, because it never changes: log entries and agent versions."""

from collections import OrderedDict
from collections.abc import Sequence

from domain.agents import AgentConfig
from domain.events import Event
from domain.transcript import READ_TYPES
from storage.agents import config_of
from storage.database import Connection
from storage.journal import read

MAX_EVENTS = 100_000
MAX_CONFIGS = 1_000
EVERYTHING = 1_000_000_000


class Recall:
    """A bounded memory in front of the database; losing it costs a read."""

    def __init__(self) -> None:
        self._logs: OrderedDict[str, list[Event]] = OrderedDict()
        self._configs: OrderedDict[tuple[str, int], AgentConfig] = OrderedDict()
        self._events = 0

    async def log(self, connection: Connection, session_id: str) -> Sequence[Event]:
        """The session's events of `READ_TYPES`, in order; only what is new is read."""
        known = self._logs.pop(session_id, [])
        self._events -= len(known)
        after = known[-1].seq if known else 0
        known = [*known, *await read(connection, session_id, after=after, types=READ_TYPES, limit=EVERYTHING)]
        self._logs[session_id] = known
        self._events += len(known)
        while self._events > MAX_EVENTS and len(self._logs) > 1:
            _, oldest = self._logs.popitem(last=False)
            self._events -= len(oldest)
        return known

    async def config(self, connection: Connection, agent_id: str, version: int) -> AgentConfig:
        key = (agent_id, version)
        if key not in self._configs:
            self._configs[key] = await config_of(connection, agent_id, version)
            if len(self._configs) > MAX_CONFIGS:
                self._configs.popitem(last=False)
        return self._configs[key]
