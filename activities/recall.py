"""What a worker has read once and need not read again, because it never changes: conversations and agent versions."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from domain.agents import AgentConfig
from domain.events import Event
from domain.transcript import READ_TYPES, Transcript
from storage.agents import config_of
from storage.database import Database
from storage.journal import read

MAX_TOKENS = 25_000_000
"""Of all conversations, estimated: about 100 MB of text."""
EVENT_TOKENS = 250
"""What an event takes beside its text."""
MAX_CONFIGS = 1_000
PAGE = 500
_READ = frozenset(READ_TYPES)


@dataclass
class _Log:
    """What was read of a session's log, folded."""

    transcript: Transcript = field(default_factory=Transcript)
    known_to: int = 0
    """The seq to which the log was read, with nothing missing."""
    events: int = 0
    size: int = 0
    """In tokens, when it was put away."""


class Recall:
    """A bounded memory in front of the database; losing it costs a read."""

    def __init__(self) -> None:
        self._logs: OrderedDict[str, _Log] = OrderedDict()
        """By session, and by run for the threads of sub-agents."""
        self._configs: OrderedDict[tuple[str, int], AgentConfig] = OrderedDict()
        self._size = 0

    def tell(self, session_id: str, events: Sequence[Event]) -> None:
        """What this process has just appended to a session's log need not be read again, if all before it is known."""
        log = self._logs.get(session_id)
        if log is None or log.known_to < events[0].seq - 1:
            return
        for event in events:
            if event.seq > log.known_to and event.type in _READ and event.thread_id is None:
                log.transcript.take(event)
                log.events += 1
        log.known_to = max(log.known_to, events[-1].seq)

    async def transcript(
        self, database: Database, session_id: str, subagent: str | None = None, *, up_to: int | None = None
    ) -> Transcript:
        """The session's conversation, or that of a sub-agent's run; only what is new in its log is read, a page at a time.

        `up_to`: a seq that is in the log already; what comes after that is not needed. The transcript goes on when it is asked
        for again, and when more is appended: what is wanted of it is to be taken at once.
        """
        log = self._take(subagent or session_id) or _Log()
        if up_to is None or log.known_to < up_to:
            await self._read(log, database, session_id, subagent)
            log.known_to = max(log.known_to, up_to or 0)
        self._take(subagent or session_id)  # of another call, which began to read meanwhile
        log.size = log.events * EVENT_TOKENS + log.transcript.tokens.estimated
        self._logs[subagent or session_id] = log
        self._size += log.size
        while self._size > MAX_TOKENS and len(self._logs) > 1:
            self._take(next(iter(self._logs)))
        return log.transcript

    async def _read(self, log: _Log, database: Database, session_id: str, subagent: str | None) -> None:
        primary = None if subagent else frozenset[str]()
        while True:
            async with database.read() as connection:
                page = await read(
                    connection,
                    session_id,
                    after=log.known_to,
                    types=READ_TYPES,
                    run_id=subagent,
                    primary=primary,
                    limit=PAGE,
                )
            for event in page:
                log.transcript.take(event)
                log.known_to = event.seq
            log.events += len(page)
            if len(page) < PAGE:
                return

    def _take(self, key: str) -> _Log | None:
        log = self._logs.pop(key, None)
        if log is not None:
            self._size -= log.size
        return log

    async def config(self, database: Database, agent_id: str, version: int) -> AgentConfig:
        key = (agent_id, version)
        if key not in self._configs:
            async with database.read() as connection:
                self._configs[key] = await config_of(connection, agent_id, version)
            if len(self._configs) > MAX_CONFIGS:
                self._configs.popitem(last=False)
        return self._configs[key]
