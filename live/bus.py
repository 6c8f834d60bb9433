"""The live bus: wake-ups, the text being written right now, and stop flags. Never the truth: losing it costs latency only."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from domain.events import Event

PreviewType = Literal["agent.message", "agent.thinking"]


@dataclass(frozen=True)
class Wake:
    """The session's log has grown to `seq`; by `events`, where they are known here, so that nobody need read them."""

    seq: int
    events: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Preview:
    """A piece of an event being written: `text` begins `offset` characters into it."""

    run_id: str
    event_id: str
    type: PreviewType
    offset: int
    text: str


@dataclass(frozen=True)
class PreviewsClosed:
    """A model call has ended: what it had begun is in the log by now, or void."""

    run_id: str


Frame = Wake | Preview | PreviewsClosed
Listener = Callable[[Frame], None]


class Writing:
    """An event being written, as far as it has got. Pieces are kept apart: joining at each would be quadratic."""

    def __init__(self, first: Preview) -> None:
        self._first = first
        self._pieces = [first.text]
        self.length = len(first.text)

    @property
    def run_id(self) -> str:
        return self._first.run_id

    @property
    def event_id(self) -> str:
        return self._first.event_id

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self.length += len(text)

    def take(self, piece: Preview) -> Preview | None:
        """Add what is new in a piece, and return that; None for what is known, and for one that leaves a gap."""
        rest = piece.text[max(self.length - piece.offset, 0) :]
        if piece.offset > self.length or not rest:
            return None
        new = Preview(piece.run_id, piece.event_id, piece.type, self.length, rest)
        self.add(rest)
        return new

    def whole(self) -> Preview:
        return Preview(self.run_id, self.event_id, self._first.type, 0, "".join(self._pieces))


class OpenTexts:
    """What is being written in this process, by session and event."""

    def __init__(self) -> None:
        self._writing: defaultdict[str, dict[str, Writing]] = defaultdict(dict)

    def add(self, session_id: str, run_id: str, event_id: str, type: PreviewType, text: str) -> Preview:
        """The text as the piece that it is; the first one opens the event."""
        before = self._writing[session_id].get(event_id)
        piece = Preview(run_id, event_id, type, 0 if before is None else before.length, text)
        if before is None:
            self._writing[session_id][event_id] = Writing(piece)
        else:
            before.add(text)
        return piece

    def close(self, session_id: str, run_id: str) -> bool:
        """Forget what the run was writing; whether there was anything."""
        writing = self._writing.get(session_id, {})
        mine = [id for id, event in writing.items() if event.run_id == run_id]
        for event_id in mine:
            del writing[event_id]
        if not writing:
            self._writing.pop(session_id, None)
        return bool(mine)

    def sessions(self) -> tuple[str, ...]:
        return tuple(self._writing)

    def whole(self, session_id: str) -> list[Preview]:
        """Each event of the session from its beginning."""
        return [event.whole() for event in self._writing.get(session_id, {}).values()]


class LiveBus(Protocol):
    """Publish and subscribe by session id. Nothing here blocks or raises: what cannot be told now is not told."""

    @property
    def poll_seconds(self) -> float:
        """How often a reader of the log should look by itself: often, while wake-ups cannot be relied on."""
        ...

    async def answers(self) -> bool | None:
        """Whether the bus can be reached; None where it is this process's own memory."""
        ...

    def wake(self, session_id: str, events: Sequence[Event]) -> None:
        """Tell that these events, consecutive and committed, were appended."""
        ...

    def write(self, session_id: str, run_id: str, event_id: str, type: PreviewType, text: str) -> None:
        """Add text to the preview of an event; the first piece opens it."""
        ...

    def close_previews(self, session_id: str, run_id: str) -> None:
        """Tell that nothing of the run is being written any more."""
        ...

    def subscribe(self, session_id: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every frame of the session until the returned function is called.

        What is being written already is told first, as previews from offset 0; that may happen again, so a listener
        compares offsets.
        """
        ...

    def stop(self, run_id: str) -> None:
        """Ask whatever model call of the run is in flight to stop. Temporal's cancellation says the same, later."""
        ...

    def stoppable(self, run_id: str) -> AbstractContextManager[asyncio.Event]:
        """An event that is set when somebody calls `stop(run_id)` inside the block."""
        ...
