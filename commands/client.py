"""The service's operations as the commands use them."""

import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, JsonValue, ValidationError

from commands.connection import Connection, Params
from commands.context import Failed
from domain.agents import AgentConfig, ModelConfig
from domain.runs import Run
from domain.sessions import OnBusy

DEFAULT_URL = "http://127.0.0.1:8000"
LIST_PAGE = 100
EVENT_PAGE = 1000

T = TypeVar("T")


class Profile(BaseModel):
    """What `perdure up` writes into its data folder for the command line on the same machine."""

    url: str
    api_key: str


class Page(BaseModel, Generic[T]):
    data: list[T]
    next_page: str | None


class Agent(BaseModel):
    id: str
    name: str
    version: int
    model: ModelConfig
    description: str | None
    metadata: dict[str, str]
    created_at: datetime
    updated_at: datetime


class LastMessage(BaseModel):
    role: str
    text: str


class SessionAgent(BaseModel):
    name: str
    version: int


class Session(BaseModel):
    id: str
    title: str | None
    status: str
    created_at: datetime
    archived_at: datetime | None
    agent: SessionAgent
    message_count: int
    last_message: LastMessage | None


class AcceptedEvent(BaseModel):
    seq: int


class Accepted(BaseModel):
    """The answer to a message: its event, and the run that will handle it."""

    event: AcceptedEvent
    run: Run


class Forked(BaseModel):
    session: Session
    run: Run | None


class Key(BaseModel):
    id: str
    name: str
    prefix: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None
    key: str | None = None
    """Only in the answer that creates it."""


class Approval(BaseModel):
    id: str
    run_id: str
    tool_name: str
    input: dict[str, JsonValue]
    status: str
    created_at: datetime
    expires_at: datetime | None


class Batch(BaseModel):
    id: str
    status: str


class Provider(BaseModel):
    name: str
    kind: str
    available: bool
    error: str | None


class Raw(BaseModel, extra="allow"):
    """An answer that is passed on as it came."""


class Client:
    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def start_run(self, prompt: str, *, agent: str | None, model: str | None, session: str | None) -> Run:
        """With neither agent, model nor session: the agent `assistant` if there is one, else `demo`."""
        body: dict[str, JsonValue] = {"input": prompt}
        if session is not None:
            body["session_id"] = session
        if model is not None:
            body["agent"] = _inline(model)
        elif agent is not None:
            body["agent"] = agent
        elif session is None:
            body["agent"] = self._default_agent()
        return self.connection.post("/v1/runs", Run, body)

    def run(self, run_id: str) -> Run:
        return self.connection.get(_at("runs", run_id), Run)

    def run_as_json(self, run_id: str) -> str:
        return self.connection.get(_at("runs", run_id), Raw).model_dump_json()

    def runs(self, *, limit: int, status: list[str], agent: str | None, session: str | None) -> list[Run]:
        """The newest first."""
        params: dict[str, str | int | list[str]] = {"status": status}
        if agent is not None:
            params["agent_id"] = self.agent(agent).id
        if session is not None:
            params["session_id"] = session
        return self._pages("/v1/runs", Page[Run], params, limit)

    def run_events(self, run_id: str) -> Iterator[JsonValue]:
        page: str | None = ""
        while page is not None:
            params: Params = {"limit": EVENT_PAGE, **({"page": page} if page else {})}
            answer = self.connection.get(f"{_at('runs', run_id)}/events", Page[JsonValue], params)
            yield from answer.data
            page = answer.next_page

    def command(self, run_id: str, name: str, body: dict[str, JsonValue]) -> Run:
        """One of pause, resume, cancel, terminate, retry, input."""
        return self.connection.post(f"{_at('runs', run_id)}/{name}", Run, body)

    def start_batch(self, inputs: list[JsonValue], *, agent: str | None, at_once: int | None) -> Batch:
        body: dict[str, JsonValue] = {"agent": agent or self._default_agent(), "inputs": inputs}
        if at_once is not None:
            body["max_concurrent"] = at_once
        return self.connection.post("/v1/batches", Batch, body)

    def batch_results(self, batch_id: str) -> Iterator[str]:
        return self.connection.lines(f"{_at('batches', batch_id)}/results")

    def cancel_batch(self, batch_id: str, reason: str | None) -> Batch:
        return self.connection.post(f"{_at('batches', batch_id)}/cancel", Batch, {"reason": reason})

    def approvals(self, *, limit: int, every: bool) -> list[Approval]:
        """The newest first; those that wait, unless `every` is asked for."""
        return self._pages("/v1/approvals", Page[Approval], {} if every else {"status": "pending"}, limit)

    def decide(self, approval_id: str, body: dict[str, JsonValue]) -> Approval:
        return self.connection.post(f"{_at('approvals', approval_id)}/decision", Approval, body)

    def start_session(self, agent: str | None) -> Session:
        return self.connection.post("/v1/sessions", Session, {"agent": agent or self._default_agent()})

    def session(self, session_id: str) -> Session:
        return self.connection.get(_at("sessions", session_id), Session)

    def sessions(self, *, limit: int, archived: bool) -> list[Session]:
        """The newest first."""
        return self._pages("/v1/sessions", Page[Session], {"include_archived": "true"} if archived else {}, limit)

    def rename_session(self, session_id: str, title: str) -> Session:
        return self.connection.post(_at("sessions", session_id), Session, {"title": title})

    def command_session(self, session_id: str, name: str) -> Session:
        """One of pause, resume, interrupt, archive."""
        return self.connection.post(f"{_at('sessions', session_id)}/{name}", Session)

    def delete_session(self, session_id: str) -> None:
        self.connection.delete(_at("sessions", session_id))

    def send(self, session_id: str, text: str, on_busy: OnBusy | None = None) -> Accepted:
        body: dict[str, JsonValue] = {"content": text, **({"on_busy": on_busy} if on_busy else {})}
        return self.connection.post(f"{_at('sessions', session_id)}/messages", Accepted, body)

    def fork(self, session_id: str, *, after: str | None, before: str | None, message: str | None) -> Forked:
        said: dict[str, JsonValue] = {"after_event_id": after, "before_event_id": before, "content": message}
        body: JsonValue = {name: value for name, value in said.items() if value is not None}
        return self.connection.post(f"{_at('sessions', session_id)}/fork", Forked, body)

    def export(self, session_id: str, format: str) -> Iterator[bytes]:
        return self.connection.download(f"{_at('sessions', session_id)}/export", {"format": format})

    def import_session(self, document: bytes, agent: str | None) -> Session:
        params: Params = {} if agent is None else {"agent": agent}
        return self.connection.upload("/v1/sessions/import", Session, document, params)

    def agents(self, limit: int) -> list[Agent]:
        return self._pages("/v1/agents", Page[Agent], {}, limit)

    def agent(self, reference: str) -> Agent:
        """By id, or by name. Raises Failed when none or several have that name."""
        if reference.startswith("agent_"):
            return self.connection.get(_at("agents", reference), Agent)
        named = self._named(reference)
        if len(named) != 1:
            what = "No agent is" if not named else f"{len(named)} agents are"
            raise Failed(f"{what} named {reference!r}: `perdure agents list` shows the names and ids.")
        return named[0]

    def agent_as_json(self, reference: str) -> str:
        return self.connection.get(_at("agents", self.agent(reference).id), Raw).model_dump_json()

    def apply(self, config: AgentConfig) -> tuple[Agent, str]:
        """Make the agent of that name what `config` says; answers it and `created`, `updated` or `unchanged`."""
        body: dict[str, JsonValue] = config.model_dump(mode="json")
        if not self._named(config.name):
            return self.connection.post("/v1/agents", Agent, body), "created"
        before = self.agent(config.name)
        # Metadata is merged by the service: what the file does not have must be named to go away.
        body["metadata"] = {**dict.fromkeys(before.metadata), **config.metadata}
        after = self.connection.post(_at("agents", before.id), Agent, {**body, "version": before.version})
        return after, "unchanged" if after.version == before.version else "updated"

    def agent_versions(self, reference: str) -> list[Agent]:
        """The newest first."""
        return self._pages(f"{_at('agents', self.agent(reference).id)}/versions", Page[Agent], {})

    def roll_back(self, reference: str, version: int) -> Agent:
        agent = self.agent(reference)
        return self.connection.post(f"{_at('agents', agent.id)}/rollback", Agent, {"version": version})

    def create_key(self, name: str, scopes: list[str]) -> Key:
        """Without scopes: all that the calling key has."""
        body: dict[str, JsonValue] = {"name": name}
        if scopes:
            body["scopes"] = [*scopes]
        return self.connection.post("/v1/api_keys", Key, body)

    def keys(self) -> list[Key]:
        """All of them, the newest first."""
        return self._pages("/v1/api_keys", Page[Key], {})

    def revoke_key(self, key_id: str) -> None:
        self.connection.delete(_at("api_keys", key_id))

    def providers(self) -> list[Provider]:
        return self.connection.get("/v1/providers", Page[Provider]).data

    def _named(self, name: str) -> list[Agent]:
        return self.connection.get("/v1/agents", Page[Agent], {"name": name, "limit": LIST_PAGE}).data

    def _default_agent(self) -> str:
        return "assistant" if self._named("assistant") else "demo"

    def _pages(self, path: str, answer: "type[Page[T]]", params: Params, limit: int = sys.maxsize) -> list[T]:
        found: list[T] = []
        page: str | None = ""
        while page is not None and len(found) < limit:
            wanted = {**params, "limit": min(LIST_PAGE, limit - len(found)), **({"page": page} if page else {})}
            answered = self.connection.get(path, answer, wanted)
            found += answered.data
            page = answered.next_page
        return found


def connect(url: str | None, api_key: str | None, data_dir: Path) -> Client:
    """The service at `url` with `api_key`; what is missing is taken from the profile in `data_dir`. Raises Failed.

    The profile's key only ever goes to the profile's own service.
    """
    profile = None if url and api_key else _profile(data_dir / "profile.json")
    if profile is not None:
        url = url or profile.url
        if api_key is None and url.rstrip("/") == profile.url.rstrip("/"):
            api_key = profile.api_key
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise Failed("The API key has characters that no key has: set PERDURE_API_KEY to the key alone.")
    return Client(Connection(url or DEFAULT_URL, api_key))


def _profile(path: Path) -> Profile | None:
    try:
        return Profile.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise Failed(f"The profile {path} cannot be read: set PERDURE_URL and PERDURE_API_KEY instead. ({error})") from error


def _inline(model: str) -> dict[str, JsonValue]:
    """An agent made for one run. Raises Failed when `model` is not provider:name."""
    try:
        ModelConfig(id=model)
    except ValidationError as error:
        raise Failed(f"--model {model}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    return {"name": model, "model": model}


def _at(collection: str, id: str) -> str:
    # An id comes from the person's command line: a slash in it must not name another resource.
    return f"/v1/{collection}/{quote(id, safe='')}"
