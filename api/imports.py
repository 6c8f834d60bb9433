"""Reading an exported session. It is data from outside: everything is checked before anything is written.

Twice through the file: once to check it as a whole, once to write it page by page. Neither holds the log in memory.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, BinaryIO, NoReturn, TypeVar

from pydantic import BaseModel, Field, JsonValue, TypeAdapter, ValidationError

from api.documents import TYPE, VERSION, AgentPlace, DocumentRun, DocumentSession
from api.json_pieces import Piece, pieces
from api.pages import Moment
from api.services.forks import check_size
from api.transaction import check_json
from domain.agents import AgentConfig
from domain.clock import now
from domain.copies import OPAQUE, Outline, Selection, select, told
from domain.errors import Invalid, Pointer
from domain.events import EventPayload, ModelRequestEnd, payloads
from domain.multiagent import RosterAgent, run_of_thread, thread_of
from storage.copies import Stored

T = TypeVar("T")

MAX_FAULTS = 20
MAX_AGENTS = 100
MAX_RUNS = 10_000
MAX_DEPTH = 20
"""Of sub-agents of sub-agents: more than any agent may have."""
MAX_ATTEMPTS = 10_000
MAX_TOKENS = 10**12
_MONEY = re.compile(r"\d{1,9}(\.\d{1,12})?", re.ASCII)
_REFERENCES = frozenset(
    {"tool_use_id", "mcp_tool_use_id", "custom_tool_use_id", "model_request_start_id", "event_id", "event_ids"}
)
"""Members that name an earlier event, whatever they hold. So does every other one that holds what looks like an event's id."""
_THREADS = "session_thread_id"
_ENVELOPE = ("id", "seq", "session_id", "run_id", "created_at", "processed_at")
_HEAD = ("type", "version", "exported_at", "last_seq", "files_included", "session", "agent", "usage", "cost")


_RUN_ID = r"^run_[0-9a-z]{26}$"
_SESSION_ID = r"^sesn_[0-9a-z]{26}$"


class _Envelope(BaseModel):
    id: Annotated[str, Field(pattern=r"^sevt_[0-9a-z]{26}$")]
    seq: Annotated[int, Field(ge=1, le=2**53, strict=True)]
    session_id: str
    run_id: Annotated[str, Field(pattern=_RUN_ID)] | None
    created_at: Moment
    processed_at: Moment | None


class DocumentAgent(BaseModel):
    pointer: str
    """Where it is in the document."""
    place: AgentPlace
    config: AgentConfig


@dataclass
class Checked:
    """A document that can be written."""

    session: DocumentSession
    agents: list[DocumentAgent]
    """The session's, then the others in such an order that each delegates only to those before it."""
    runs: dict[str, DocumentRun]
    outline: list[Outline]
    selection: Selection


@dataclass
class _Faults:
    found: list[Pointer] = field(default_factory=list[Pointer])

    def add(self, pointer: str, detail: str) -> None:
        """Raises Invalid once there are enough."""
        self.found.append(Pointer(pointer=pointer, detail=detail))
        if len(self.found) == MAX_FAULTS:
            self.refuse()

    def refuse(self) -> NoReturn:
        first = self.found[0]
        raise Invalid(f"{first.pointer}: {first.detail}", *self.found)

    def parsed(self, pointer: str, parse: Callable[[], T], skip: int = 0) -> T | None:
        """What `parse` makes of it; None where that is a fault. `skip`: the parts of a fault's place that are no members."""
        try:
            return parse()
        except Invalid as error:
            self.add(pointer, error.message)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False):
                self.add("/".join((pointer, *map(str, fault["loc"][skip:]))), fault["msg"])
        except (ValueError, OverflowError):
            self.add(pointer, "It has a value that cannot be.")
        return None


def check(file: BinaryIO) -> Checked:
    """Raises BadRequest, TooLarge, and Invalid with pointers. Blocking: use a thread."""
    return _Check().all_of(file)


def read_events(file: BinaryIO) -> Iterator[Stored]:
    """The events of a document that was checked."""
    file.seek(0)
    for piece in pieces(file):
        if piece.member == "events":
            assert isinstance(piece.value, dict)
            envelope = _Envelope.model_validate(piece.value)
            _, dumped = _payload(piece.value)
            yield _stored(envelope, dumped)


def _stored(envelope: _Envelope, payload: dict[str, JsonValue]) -> Stored:
    moment, taken_up = _past(envelope.created_at), envelope.processed_at
    return Stored(envelope.id, envelope.seq, envelope.run_id, payload, moment, None if taken_up is None else _past(taken_up))


def _past(moment: Moment) -> Moment:
    """Another machine's clock may be ahead of ours: nothing here has happened later than now."""
    return min(moment, now())


def _payload(value: Mapping[str, JsonValue]) -> tuple[EventPayload, dict[str, JsonValue]]:
    """The event's own members, as they are kept."""
    payload = payloads.validate_python(dict(value))
    return payload, payload.model_dump(mode="json")


class _Check:
    def __init__(self) -> None:
        self.faults = _Faults()
        self.head: dict[str, JsonValue] = {}
        self.agents: list[DocumentAgent] = []
        self.runs: dict[str, DocumentRun] = {}
        self.events: list[tuple[_Envelope, str, tuple[str | None, str | None]]] = []
        """With the type, and the thread that it opens."""
        self.ids: set[str] = set()
        self.run_places: dict[str, str] = {}
        self.thread_places: dict[str, str] = {}
        """Where each is named first."""
        self.openings: list[tuple[str, str, str | None]] = []
        """Where a thread is opened, which, and by which run."""

    def all_of(self, file: BinaryIO) -> Checked:
        arrays: dict[str, str] = {}
        for piece in pieces(file):
            where = f"/{piece.member}" + ("" if piece.at is None else f"/{piece.at}")
            if (piece.member in arrays and not piece.at) or piece.member in self.head:
                self.faults.add(where, "It is there twice.")
                continue
            if piece.at is not None:
                arrays[piece.member] = where
            if self.faults.parsed(where, lambda piece=piece: check_json(piece.value) or True):
                self._take(piece, where)
        return self._whole()

    def _take(self, piece: Piece, where: str) -> None:
        match piece.member, piece.at:
            case "events", int():
                check_size(piece.at + 1)
                self._event(piece.value, where)
            case "runs", int():
                self._run(piece.value, where)
            case "subagents", int():
                self._agent(piece.value, where)
            case name, None if name in _HEAD:
                self.head[name] = piece.value
            case _:
                self.faults.add(where, "A session's document has no such member.")

    def _agent(self, value: JsonValue, where: str) -> DocumentAgent | None:
        if not isinstance(value, dict):
            self.faults.add(where, "An agent is an object.")
            return None
        if len(self.agents) >= MAX_AGENTS:
            self.faults.add(where, f"There are more than {MAX_AGENTS} agents.")
            return None
        rest = dict(value)
        ids = {name: rest.pop(name, None) for name in ("id", "version")}
        place = self.faults.parsed(where, lambda: AgentPlace.model_validate(ids))
        config = self.faults.parsed(where, lambda: AgentConfig.model_validate(rest))
        if place is None or config is None:
            return None
        agent = DocumentAgent(pointer=where, place=place, config=config)
        self.agents.append(agent)
        return agent

    def _run(self, value: JsonValue, where: str) -> None:
        run = self.faults.parsed(where, lambda: DocumentRun.model_validate(value))
        if run is None:
            return
        if run.id in self.runs or not re.match(_RUN_ID, run.id):
            self.faults.add(f"{where}/id", "It is there twice." if run.id in self.runs else "It is no run's id.")
        if len(self.runs) >= MAX_RUNS:
            self.faults.add(where, f"There are more than {MAX_RUNS:,} runs.")
        if (run.kind == "subagent") != (run.parent_run_id is not None):
            self.faults.add(f"{where}/parent_run_id", "A sub-agent's run has one, and no other.")
        self.runs[run.id] = run

    def _event(self, value: JsonValue, where: str) -> None:
        if not isinstance(value, dict):
            self.faults.add(where, "An event is an object.")
            return
        envelope = self.faults.parsed(where, lambda: _Envelope.model_validate(value))
        parsed = self.faults.parsed(where, lambda: _payload(value), skip=1)
        if envelope is None or parsed is None:
            return
        payload, dumped = parsed
        for name in value.keys() - dumped.keys() - {*_ENVELOPE, _THREADS}:
            self.faults.add(f"{where}/{name}", f"An event {payload.type} has no such member.")
        if envelope.id in self.ids:
            self.faults.add(f"{where}/id", "It is there twice.")
        if self.events and envelope.seq <= self.events[-1][0].seq:
            self.faults.add(f"{where}/seq", "It is not above that of the event before.")
        if envelope.run_id is None and not payload.type.startswith("session."):
            self.faults.add(f"{where}/run_id", "Such an event is one of a run.")
        self._numbers(payload, dumped, where)
        self._references(dumped, where)
        opened, _ = its = told(payload)
        if opened is not None:
            self.openings.append((f"{where}/{_THREADS}", opened, envelope.run_id))
        self.ids.add(envelope.id)
        self.events.append((envelope, payload.type, its))
        if envelope.run_id is not None:
            self.run_places.setdefault(envelope.run_id, where)

    def _numbers(self, payload: EventPayload, dumped: Mapping[str, JsonValue], where: str) -> None:
        """Those that are counted with."""
        attempt = dumped.get("attempt", 1)
        if not isinstance(attempt, int) or not 1 <= attempt <= MAX_ATTEMPTS:
            self.faults.add(f"{where}/attempt", f"It is from 1 to {MAX_ATTEMPTS:,}.")
        if isinstance(payload, ModelRequestEnd):
            counts = [count for count in payload.model_usage.model_dump().values() if not isinstance(count, bool)]
            if not all(0 <= count <= MAX_TOKENS for count in counts):
                self.faults.add(f"{where}/model_usage", "It has an impossible number of tokens.")
            if payload.cost is not None and not (_MONEY.fullmatch(payload.cost.amount) and payload.cost.currency == "USD"):
                self.faults.add(f"{where}/cost", "It is an amount of US dollars, such as 0.0123.")

    def _references(self, members: Mapping[str, JsonValue], where: str) -> None:
        for name, value in members.items():
            if name in OPAQUE:
                continue
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    self._references(one, f"{where}/{name}")
                elif isinstance(one, str) and name.endswith(_THREADS):
                    self.thread_places.setdefault(one, f"{where}/{name}")
                elif (
                    isinstance(one, str)
                    and one not in self.ids
                    and name.endswith(("_id", "_ids"))
                    and (name in _REFERENCES or one.startswith("sevt_"))
                ):
                    self.faults.add(f"{where}/{name}", f"No event before this one has the id {one[:100]!r}.")

    def _check_order(self, subagents: Collection[str]) -> None:
        """On every thread the agent answers somebody: vendors refuse a conversation that the model begins."""
        messages: set[str] = set()
        read: set[str] = set()
        for index, (envelope, type, _) in enumerate(self.events):
            run = envelope.run_id or ""
            thread = run if run in subagents else ""
            if type in ("user.message", "agent.thread_message_received"):
                messages.add(run)
            elif type == "span.model_request_start" and run in messages:
                read.add(thread)
            elif type in _ANSWERS and thread not in read:
                self.faults.add(f"/events/{index}", "The agent speaks before anybody has said anything to it.")

    def _whole(self) -> Checked:
        """What can be said only when all of it is known."""
        faults = self.faults
        if self.head.get("type") != TYPE:
            faults.add("/type", f"Send a document as `GET /v1/sessions/{{id}}/export` gives it: its type is {TYPE!r}.")
            faults.refuse()
        if self.head.get("version") != VERSION:
            faults.add("/version", f"Only version {VERSION} can be read.")
            faults.refuse()
        session = faults.parsed("/session", lambda: _SESSION.validate_python(self.head.get("session")))
        agent = self._agent(self.head.get("agent"), "/agent")
        if session is None or agent is None:
            faults.refuse()
        agents = self._ordered(agent)
        self._check_session(session, agent)
        self._check_runs({(found.place.id, found.place.version) for found in self.agents})
        subagents = {id for id, run in self.runs.items() if run.kind == "subagent"}
        self._check_order(subagents)
        threads = {thread_of(session.id), *map(thread_of, subagents)}
        for thread, where in self.thread_places.items():
            if thread not in threads:
                faults.add(where, f"No run of the document works on the thread {thread[:100]!r}.")
        self._check_openings()
        if faults.found:
            faults.refuse()
        outline = [
            Outline(envelope.id, envelope.seq, type, envelope.run_id, envelope.run_id in subagents, *its)
            for envelope, type, its in self.events
        ]
        selection = select(outline)
        chosen = set(selection.run_ids)
        for index, run in enumerate(self.runs.values()):
            if run.id in chosen and run.parent_run_id is not None and run.parent_run_id not in chosen:
                faults.add(f"/runs/{index}/parent_run_id", "That run had not begun.")
        if faults.found:
            faults.refuse()
        return Checked(session, agents, self.runs, outline, selection)

    def _check_session(self, session: DocumentSession, agent: DocumentAgent) -> None:
        if not re.match(_SESSION_ID, session.id):
            self.faults.add("/session/id", "It is no session's id.")
        if session.agent != agent.place:
            self.faults.add("/session/agent", "It is not the agent of the document.")
        other = next((at for at, (envelope, *_) in enumerate(self.events) if envelope.session_id != session.id), None)
        if other is not None:
            self.faults.add(f"/events/{other}/session_id", "It is not the session of the document.")

    def _check_runs(self, agents: set[tuple[str, int]]) -> None:
        for index, run in enumerate(self.runs.values()):
            if (run.agent.id, run.agent.version) not in agents:
                self.faults.add(f"/runs/{index}/agent", "The document has no such agent at that version.")
            here: DocumentRun | None = run
            for _ in range(MAX_DEPTH):
                if here is not None and here.parent_run_id is not None:
                    here = self.runs.get(here.parent_run_id)
            if here is None or here.parent_run_id is not None:
                self.faults.add(f"/runs/{index}/parent_run_id", "It leads to no run that began by itself.")
        for run_id, where in self.run_places.items():
            if run_id not in self.runs:
                self.faults.add(f"{where}/run_id", f"The document has no run {run_id}.")

    def _check_openings(self) -> None:
        """Whoever follows threads from one to the next comes to an end."""
        opened: set[str] = set()
        for where, thread, by in self.openings:
            run = self.runs.get(run_of_thread(thread))
            if thread in opened or run is None or run.parent_run_id is None or run.parent_run_id != by:
                self.faults.add(where, "A thread is opened once, by the run that its own run works for.")
            opened.add(thread)

    def _ordered(self, first: DocumentAgent) -> list[DocumentAgent]:
        """The session's agent first, then the others, each behind those that it delegates to."""
        by_place = {(agent.place.id, agent.place.version): agent for agent in self.agents}
        if len(by_place) < len(self.agents):
            self.faults.add("/subagents", "An agent is there twice.")
        done: dict[tuple[str, int], DocumentAgent] = {}

        def visit(agent: DocumentAgent, above: tuple[tuple[str, int], ...]) -> None:
            place = (agent.place.id, agent.place.version)
            if place in done:
                return
            for entry in agent.config.multiagent.agents if agent.config.multiagent else ():
                if isinstance(entry, RosterAgent):
                    below = (entry.id, entry.version or 1)
                    if below not in by_place or below in (*above, place):
                        self.faults.add("/subagents", f"Delegates to {entry.id[:100]!r}, which is not there, or is above it.")
                    else:
                        visit(by_place[below], (*above, place))
            done[place] = agent

        for agent in self.agents:
            visit(agent, ())
        return [first, *(agent for agent in done.values() if agent is not first)]


_ANSWERS = frozenset({"agent.message", "agent.thinking", "agent.tool_use", "agent.mcp_tool_use", "agent.custom_tool_use"})
_SESSION: TypeAdapter[DocumentSession] = TypeAdapter(DocumentSession)
