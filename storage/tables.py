"""The tables. One set for SQLite and Postgres; migrations/ builds them, a test compares the two."""

from datetime import datetime

from pydantic import JsonValue
from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Index,
    String,
    Text,
    UniqueConstraint,
    column,
    false,
    literal_column,
    text,
)
from sqlmodel import Field, SQLModel

from storage.columns import UtcDateTime, big, json_, partial, time_

_LISTED = column("inline").is_(False)
_OPEN = column("archived_at").is_(None)
_ACTIVE = column("active_run_id").is_not(None)
_PENDING = column("processed_at").is_(None)
_SUBAGENT = column("parent_run_id").is_not(None)
_TITLE_DUE = column("titling") == literal_column("'due'")
_QUEUED = column("status") == literal_column("'queued'")
_FORKED = column("forked_from_id").is_not(None)
_OF_BATCH = column("batch_id").is_not(None)
_OF_BULK = column("bulk_id").is_not(None)


class WorkspaceRow(SQLModel, table=True):
    __tablename__ = "workspaces"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it

    id: str = Field(primary_key=True)
    name: str
    created_at: datetime = time_()


class ApiKeyRow(SQLModel, table=True):
    __tablename__ = "api_keys"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id", index=True)
    name: str
    prefix: str = Field(unique=True)
    """The first characters of the key, by which it is found and shown."""
    sha256: str
    scopes: list[str] = json_()
    created_at: datetime = time_()
    revoked_at: datetime | None = time_(nullable=True)


class ClientTokenRow(SQLModel, table=True):
    """A browser's token: good while its key is, its session is open, and its time is not over."""

    __tablename__ = "client_tokens"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    session_id: str = Field(foreign_key="sessions.id", index=True)
    key_id: str = Field(foreign_key="api_keys.id")
    """The key that asked for it."""
    prefix: str = Field(unique=True)
    sha256: str
    grants: list[str] = json_()
    created_at: datetime = time_()
    expires_at: datetime = Field(sa_column=Column(UtcDateTime(), nullable=False, index=True))


class AgentRow(SQLModel, table=True):
    __tablename__ = "agents"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        partial("ix_agents_listed", "workspace_id", "created_at", "id", where=_LISTED),
        partial("ix_agents_named", "workspace_id", "name", "created_at", "id", where=_LISTED),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    name: str
    version: int
    inline: bool = False
    """Defined inside one request; not listed."""
    created_at: datetime = time_()
    updated_at: datetime = time_()
    archived_at: datetime | None = time_(nullable=True)


class AgentVersionRow(SQLModel, table=True):
    __tablename__ = "agent_versions"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it

    agent_id: str = Field(foreign_key="agents.id", primary_key=True)
    version: int = Field(primary_key=True)
    config: dict[str, JsonValue] = json_()
    created_at: datetime = time_()


class UsageColumns(SQLModel):
    input_tokens: int = Field(default=0, sa_type=BigInteger)
    output_tokens: int = Field(default=0, sa_type=BigInteger)
    cache_read_input_tokens: int = Field(default=0, sa_type=BigInteger)
    cache_creation_input_tokens: int = Field(default=0, sa_type=BigInteger)
    usage_estimated: bool = False
    model_call_count: int = 0
    cost_nano_usd: int | None = Field(default=None, sa_type=BigInteger, nullable=True)
    """Billionths of a dollar; null when nothing was called yet or the price of any call is unknown."""


class SessionRow(UsageColumns, table=True):
    __tablename__ = "sessions"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_sessions_workspace_id_created_at", "workspace_id", "created_at", "id"),
        Index("ix_sessions_workspace_id_status", "workspace_id", "status", "created_at", "id"),
        Index("ix_sessions_agent_id_created_at", "agent_id", "created_at", "id"),
        partial("ix_sessions_open", "workspace_id", "created_at", "id", where=_OPEN),
        partial("ix_sessions_open_status", "workspace_id", "status", "created_at", "id", where=_OPEN),
        partial("ix_sessions_open_agent", "agent_id", "created_at", "id", where=_OPEN),
        Index("ix_sessions_provider", "workspace_id", "provider", "created_at", "id"),
        Index("ix_sessions_model", "workspace_id", "model", "created_at", "id"),
        partial("ix_sessions_open_provider", "workspace_id", "provider", "created_at", "id", where=_OPEN),
        partial("ix_sessions_open_model", "workspace_id", "model", "created_at", "id", where=_OPEN),
        partial("ix_sessions_active_run_id", "active_run_id", where=_ACTIVE),
        partial("ix_sessions_title_due", "id", where=_TITLE_DUE),
        partial("ix_sessions_forked_from_id", "forked_from_id", "created_at", "id", where=_FORKED),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    agent_id: str = Field(foreign_key="agents.id")
    agent_version: int
    provider: str | None = None
    model: str | None = None
    """As that version of the agent names it, `provider:name`; here so that sessions are found by it."""
    title: str | None = None
    titling: str | None = None
    """`due`: a model is to write the title. `asked`: and its workflow exists. `done`: it has, has given up, or somebody else
    named the session."""
    tags: list[str] = Field(
        default_factory=list, sa_column=Column(JSON(none_as_null=True), nullable=False, server_default="[]")
    )
    environment_id: str = "env_default"
    on_busy: str = "queue"
    queue_depth: int = Field(default=20, sa_column_kwargs={"server_default": "20"})
    """How many turns may wait for the active one."""
    paused: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Messages are queued, and no turn starts."""
    permissions: dict[str, str] = Field(
        default_factory=dict, sa_column=Column(JSON(none_as_null=True), nullable=False, server_default="{}")
    )
    """Policies by a tool's name that hold here instead of the agent's."""
    status: str = "idle"
    meta: dict[str, str] = json_()
    last_seq: int = big()
    active_run_id: str | None = None
    message_count: int = 0
    last_message: dict[str, str] | None = json_(nullable=True)
    active_seconds: float = 0.0
    resources: list[dict[str, str]] | None = json_(nullable=True)
    """`domain.files.MountedFile`s, as JSON."""
    resources_pending: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """Some of them are not in the session's directory yet."""
    forked_from_id: str | None = None
    """The session that this one is a fork of; no foreign key, for either may be deleted."""
    forked_from_event_id: str | None = None
    """The last of its events up to which the log was copied."""
    forked_before_event_id: str | None = None
    """Of a fork before an event, such as a message that was edited: that event."""
    hidden: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    """No conversation: the log of the batch of the same id."""
    created_at: datetime = time_()
    updated_at: datetime = time_()
    archived_at: datetime | None = time_(nullable=True)


class EventRow(SQLModel, table=True):
    __tablename__ = "events"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        UniqueConstraint("session_id", "append_key", "append_index"),
        Index("ix_events_run_id_seq", "run_id", "seq"),
        Index("ix_events_session_id_type_seq", "session_id", "type", "seq"),
        partial("ix_events_pending", "session_id", "type", where=_PENDING),
    )

    session_id: str = Field(foreign_key="sessions.id", primary_key=True)
    seq: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    id: str = Field(unique=True)
    run_id: str | None = None
    thread_id: str | None = None
    """None: the session's primary thread."""
    for_run_id: str | None = None
    """The run that reads it, where the one that it was sent to ended first."""
    type: str
    append_key: str | None = None
    """Names the append that wrote it, so that an activity that runs again finds what it wrote."""
    append_index: int = 0
    created_at: datetime = time_()
    processed_at: datetime | None = time_(nullable=True)
    payload: dict[str, JsonValue] = json_()
    private: dict[str, JsonValue] | None = json_(nullable=True)


# Runs that were asked for something, and are not over. As it stands in the sweeper's query: an index serves no other wording.
ASKED = (
    "finished_at IS NULL AND (pause_requested_at IS NOT NULL OR resume_requested_at IS NOT NULL OR answered_at IS NOT NULL"
    " OR cancel_requested_at IS NOT NULL OR terminate_requested_at IS NOT NULL)"
)
_ASKED = text(ASKED)


class RunRow(UsageColumns, table=True):
    __tablename__ = "runs"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_runs_workspace_id_created_at", "workspace_id", "created_at", "id"),
        Index("ix_runs_workspace_id_status", "workspace_id", "status", "created_at", "id"),
        Index("ix_runs_agent_id_created_at", "agent_id", "created_at", "id"),
        Index("ix_runs_agent_id_status", "agent_id", "status", "created_at", "id"),
        Index("ix_runs_session_id_created_at", "session_id", "created_at", "id"),
        Index("ix_runs_session_id_status", "session_id", "status", "created_at", "id"),
        Index("ix_runs_status_touched_at", "status", "touched_at"),
        partial("ix_runs_parent_run_id", "parent_run_id", "created_at", "id", where=_SUBAGENT),
        partial("ix_runs_queue", "session_id", "queue_position", "created_at", "id", where=_QUEUED),
        partial("ix_runs_batch_id", "batch_id", "created_at", "id", where=_OF_BATCH),
        partial("ix_runs_batch_id_status", "batch_id", "status", "created_at", "id", where=_OF_BATCH),
        partial("ix_runs_bulk_id_status", "bulk_id", "status", where=_OF_BULK),
        Index("ix_runs_asked", "touched_at", "id", sqlite_where=_ASKED, postgresql_where=_ASKED),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    session_id: str = Field(foreign_key="sessions.id")
    kind: str
    agent_id: str = Field(foreign_key="agents.id")
    agent_version: int
    agent_name: str
    model: str
    status: str
    waiting_for: str | None = None
    stop_type: str | None = None
    output: str | None = Field(default=None, sa_column=Column(Text(), nullable=True))
    error: dict[str, JsonValue] | None = json_(nullable=True)
    limits: dict[str, JsonValue] = json_()
    meta: dict[str, str] = json_()
    step_count: int = 0
    attempt: int = 1
    copied_from: str | None = None
    """The run that this is a copy of, in a fork or an import: it never ran here, and has used nothing."""
    parent_run_id: str | None = None
    thread_id: str | None = None
    """A sub-agent's thread. None: a turn or a task, which is on its session's primary thread."""
    depth_left: int | None = None
    """Of a sub-agent: levels of delegation that may be below it."""
    queue_position: int = Field(default=0, sa_column=Column(BigInteger(), nullable=False, server_default="0"))
    """The lower ones start first; see `storage.queues`."""
    input_event_id: str | None = None
    """Of a turn: the message that it answers."""
    created_at: datetime = time_()
    started_at: datetime | None = time_(nullable=True)
    finished_at: datetime | None = time_(nullable=True)
    touched_at: datetime = time_()
    """The last change of the row: what the sweeper looks at to find runs that nothing moves any more."""
    pause_requested_at: datetime | None = time_(nullable=True)
    pause_mode: str | None = None
    paused_at: datetime | None = time_(nullable=True)
    resume_requested_at: datetime | None = time_(nullable=True)
    cancel_requested_at: datetime | None = time_(nullable=True)
    terminate_requested_at: datetime | None = time_(nullable=True)
    stop_note: str | None = Field(default=None, sa_column=Column(String(2000), nullable=True))
    """The reason given with cancel or terminate."""
    answered_at: datetime | None = time_(nullable=True)
    """An answer was given that the workflow has not taken up yet."""
    plan: list[JsonValue] | None = json_(nullable=True)
    """The agent's todo list, as its tool `plan` wrote it last."""
    workflow_seen_at: datetime | None = time_(nullable=True)
    """The sweeper has seen to it that the workflow of a queued run exists."""
    batch_id: str | None = None
    bulk_id: str | None = None
    """The bulk operation that retried it last."""


_PENDING_APPROVAL = column("status") == literal_column("'pending'")
_OPEN_WAIT = column("closed_at").is_(None)


class ApprovalRow(SQLModel, table=True):
    __tablename__ = "approvals"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_approvals_workspace_id_created_at", "workspace_id", "created_at", "id"),
        Index("ix_approvals_workspace_id_status", "workspace_id", "status", "created_at", "id"),
        Index("ix_approvals_run_id", "run_id", "created_at"),
        Index("ix_approvals_session_id", "session_id", "created_at"),
        partial("ix_approvals_pending", "workspace_id", "created_at", "id", where=_PENDING_APPROVAL),
    )

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    session_id: str = Field(foreign_key="sessions.id")
    run_id: str = Field(foreign_key="runs.id")
    thread_id: str | None = None
    tool_use_id: str = Field(unique=True)
    tool_name: str
    input: dict[str, JsonValue] = json_()
    """The arguments that were shown: these are run, or those in their place."""
    input_schema: dict[str, JsonValue] = json_()
    edited_input: dict[str, JsonValue] | None = json_(nullable=True)
    status: str = "pending"
    reason: str | None = Field(default=None, sa_column=Column(Text(), nullable=True))
    decided_by: str | None = None
    remembered: bool = False
    on_timeout: str
    expires_at: datetime | None = time_(nullable=True)
    created_at: datetime = time_()
    decided_at: datetime | None = time_(nullable=True)


class WaitRow(SQLModel, table=True):
    """A tool use that the workflow carries out by waiting: for an answer, a result, a time, an external event."""

    __tablename__ = "waits"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (
        Index("ix_waits_run_id", "run_id", "created_at"),
        Index("ix_waits_session_id", "session_id"),
        partial("ix_waits_open_events", "workspace_id", "event_type", "created_at", where=_OPEN_WAIT),
    )

    tool_use_id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    session_id: str = Field(foreign_key="sessions.id")
    run_id: str = Field(foreign_key="runs.id")
    kind: str
    event_type: str | None = None
    event_match: dict[str, JsonValue] | None = json_(nullable=True)
    answer_schema: dict[str, JsonValue] | None = json_(nullable=True)
    """What an answer must fit."""
    until: datetime | None = time_(nullable=True)
    created_at: datetime = time_()
    closed_at: datetime | None = time_(nullable=True)
    answer_id: str | None = None
    """The event that closed it; None: time did, or the end of the run."""


class FileRow(SQLModel, table=True):
    __tablename__ = "files"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (Index("ix_files_workspace_id_created_at", "workspace_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    workspace_id: str = Field(foreign_key="workspaces.id")
    filename: str
    media_type: str
    size_bytes: int = Field(sa_type=BigInteger)
    sha256: str
    created_at: datetime = time_()


class ArtifactRow(SQLModel, table=True):
    __tablename__ = "artifacts"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (Index("ix_artifacts_session_id_created_at", "session_id", "created_at", "id"),)

    id: str = Field(primary_key=True)
    session_id: str = Field(foreign_key="sessions.id")
    run_id: str
    name: str
    description: str | None = Field(default=None, sa_column=Column(Text(), nullable=True))
    media_type: str
    size_bytes: int = Field(sa_type=BigInteger)
    sha256: str
    path: str = Field(sa_column=Column(Text(), nullable=False))
    created_at: datetime = time_()


class ForgottenWorkflowRow(SQLModel, table=True):
    """A workflow whose session was deleted: Temporal is to delete its histories, too. The row goes when they have."""

    __tablename__ = "forgotten_workflows"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it
    __table_args__ = (Index("ix_forgotten_workflows_due_at", "due_at", "workflow_id"),)

    workflow_id: str = Field(primary_key=True)
    created_at: datetime = time_()
    due_at: datetime = time_()
    """When Temporal is to be asked next."""


class IdempotencyRow(SQLModel, table=True):
    __tablename__ = "idempotency_keys"  # pyright: ignore[reportAssignmentType]  # as SQLModel documents it

    workspace_id: str = Field(primary_key=True)
    route: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    body_sha256: str
    status: int
    headers: dict[str, str] = json_()
    body: str = Field(sa_column=Column(Text(), nullable=False))
    created_at: datetime = Field(sa_column=Column(UtcDateTime(), nullable=False, index=True))
