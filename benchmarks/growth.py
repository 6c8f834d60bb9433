"""A turn in a session with a long past, beside one in a session that has just begun."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic

from benchmarks.measure import Figure, Report, Size, cpu_seconds, kept
from benchmarks.seeds import MODEL, TURN_EVENTS, long_session, tables_of
from benchmarks.service import Perdure, perdure
from benchmarks.sides import OVER

MAX_RATIO = 1.3


@dataclass
class Turns:
    """Seconds of each turn, by round: the first of a round is the first that this worker sees of the session."""

    first: list[float] = field(default_factory=list[float])
    further: list[list[float]] = field(default_factory=list[list[float]])
    cpu: list[float] = field(default_factory=list[float])

    @property
    def medians(self) -> list[float]:
        return [median(turns) for turns in self.further]


async def measure(size: Size) -> Report:
    with tempfile.TemporaryDirectory(prefix="perdure-bench-") as name:
        async with perdure(Path(name)) as service:
            return await turns(service, size)


async def turns(service: Perdure, size: Size) -> Report:
    short, long = Turns(), Turns()
    agent = await service.agent("growth", MODEL)
    async with tables_of(service) as database:
        for number in range(size.rounds):
            print(f"round {number + 1} of {size.rounds}", flush=True)
            sessions = [
                (short, await long_session(database, agent, TURN_EVENTS)),
                (long, await long_session(database, agent, size.events)),
            ]
            await _round(service, sessions if number % 2 == 0 else sessions[::-1], size.turns)
    return Report(
        [
            _figure("a turn, ms", short.medians, long.medians, MAX_RATIO),
            _figure("… CPU of the process, ms", short.cpu, long.cpu),
            _figure("the first turn that a worker sees of the session, ms", short.first, long.first),
        ],
        f"{TURN_EVENTS} events",
        _MEASURED.format(events=size.events, turns=size.turns, rounds=size.rounds),
        f"{size.events:,} events",
    )


_MEASURED = """
`perdure up` on SQLite. The past is told to the journal as the product tells it, {events} events in turns of ten. Both sessions
then get {turns} turns, one after the other in turns, in each of {rounds} rounds with fresh sessions.

- **A turn:** from the POST of the message to a viewer's `run.completed`, without the model's time
  (`span.model_request_end.duration_ms`). The median of a round's turns but the first; the ratio is the median of the rounds'.
- **The first turn** makes the worker read the conversation, which it then keeps: all of it goes to the model. It has no target.
"""


async def _round(service: Perdure, sessions: Sequence[tuple[Turns, str]], turns: int) -> None:
    for samples, _ in sessions:
        samples.further.append([])
    cpu = [0.0 for _ in sessions]
    for number in range(turns):
        for place, (samples, session) in enumerate(sessions):
            used = cpu_seconds(service.pid)
            seconds = await _turn(service, session)
            if number == 0:
                samples.first.append(seconds)
            else:
                samples.further[-1].append(seconds)
                cpu[place] += cpu_seconds(service.pid) - used
    for (samples, _), seconds in zip(sessions, cpu, strict=True):
        samples.cpu.append(seconds / (turns - 1))


async def _turn(service: Perdure, session: str) -> float:
    """Seconds from sending a message to a viewer's seeing the end of its run, without the model's."""
    async with service.watch(session) as viewer:
        began = monotonic()
        await service.send(session, "hello")
        model = (await viewer.until("span.model_request_end")).json()["duration_ms"] / 1000
        over = await viewer.until(*OVER)
        if over.event != "run.completed":
            raise AssertionError(f"the run ended otherwise: {over.data}")
        return monotonic() - began - model


def _figure(name: str, short: Sequence[float], long: Sequence[float], most: float | None = None) -> Figure:
    ratio = median(b / a for a, b in zip(short, long, strict=True))
    return Figure(
        name,
        f"{median(long) * 1000:.1f}",
        "–" if most is None else f"≤ {most} ×",
        "" if most is None else kept(ratio <= most),
        f"{median(short) * 1000:.1f}",
        f"{ratio:.2f}",
    )
