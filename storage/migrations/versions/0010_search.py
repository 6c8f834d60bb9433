"""Search: the words of titles and messages, what sessions are found by, and what is there already."""

import sqlalchemy as sa
from alembic import op

from domain.search import indexed

revision = "0010_search"
down_revision = "0008_forks"
branch_labels = None
depends_on = None

_OPEN = sa.column("archived_at").is_(None)
_BATCH = 500
_BY = ("provider", "model")

# Contentless: the words are in search_texts, and the triggers hand them over again to take them out.
_SQLITE = (
    "CREATE VIRTUAL TABLE search_index USING fts5("
    "words, content='', columnsize=0, prefix='3', tokenize=\"ascii tokenchars '_'\")",
    """CREATE TRIGGER search_texts_inserted AFTER INSERT ON search_texts BEGIN
        INSERT INTO search_index(rowid, words) VALUES (new.id, {new}); END""",
    """CREATE TRIGGER search_texts_deleted AFTER DELETE ON search_texts BEGIN
        INSERT INTO search_index(search_index, rowid, words) VALUES ('delete', old.id, {old}); END""",
    """CREATE TRIGGER search_texts_updated AFTER UPDATE ON search_texts BEGIN
        INSERT INTO search_index(search_index, rowid, words) VALUES ('delete', old.id, {old});
        INSERT INTO search_index(rowid, words) VALUES (new.id, {new}); END""",
)
_LINE = "{row}workspace_id || CASE WHEN {row}event_id IS NULL THEN ' title_ ' ELSE ' ' END || {row}words"
"""What is indexed of a row: its workspace and whether it is a title stand among the words, so that the index finds by them."""


def upgrade() -> None:
    connection = op.get_bind()
    postgres = connection.dialect.name == "postgresql"
    op.add_column("sessions", sa.Column("provider", sa.String(), nullable=True))
    op.add_column("sessions", sa.Column("model", sa.String(), nullable=True))
    op.add_column("sessions", sa.Column("tags", sa.JSON(), nullable=False, server_default="[]"))
    for name in _BY:
        columns = ["workspace_id", name, "created_at", "id"]
        op.create_index(f"ix_sessions_{name}", "sessions", columns)
        op.create_index(f"ix_sessions_open_{name}", "sessions", columns, sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.create_table(
        "search_texts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("workspace_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("event_id", sa.String(), nullable=True),
        sa.Column("words", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_search_texts_workspace_id_workspaces")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name=op.f("fk_search_texts_session_id_sessions")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_search_texts")),
    )
    op.create_index("ix_search_texts_session_id", "search_texts", ["session_id", "event_id"])
    op.create_index("ix_search_texts_workspace_id", "search_texts", ["workspace_id", "id"])
    op.create_table(
        "session_labels",
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("workspace_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name=op.f("fk_session_labels_session_id_sessions")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_session_labels_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("session_id", "kind", "label", name=op.f("pk_session_labels")),
    )
    op.create_index("ix_session_labels_listed", "session_labels", ["workspace_id", "kind", "label", "created_at", "session_id"])
    if postgres:
        line = _LINE.format(row="")
        op.execute(
            "ALTER TABLE search_texts ADD COLUMN vector tsvector"
            f" GENERATED ALWAYS AS (array_to_tsvector(string_to_array(rtrim({line}), ' '))) STORED"
        )
        op.execute("CREATE INDEX ix_search_texts_vector ON search_texts USING gin (vector)")
    else:
        for statement in _SQLITE:
            op.execute(statement.format(new=_LINE.format(row="new."), old=_LINE.format(row="old.")))
    _fill(connection)


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        op.execute("DROP TABLE search_index")
    op.drop_table("session_labels")
    op.drop_table("search_texts")
    for name in _BY:
        op.drop_index(f"ix_sessions_open_{name}", "sessions")
        op.drop_index(f"ix_sessions_{name}", "sessions")
    for name in ("tags", "model", "provider"):
        op.drop_column("sessions", name)


_sessions = sa.table(
    "sessions",
    *(sa.column(name, sa.String()) for name in ("id", "workspace_id", "agent_id", "provider", "model", "title")),
    sa.column("agent_version", sa.Integer()),
    sa.column("meta", sa.JSON()),
    sa.column("created_at", sa.DateTime(timezone=True)),
)
_versions = sa.table(
    "agent_versions", sa.column("agent_id", sa.String()), sa.column("version", sa.Integer()), sa.column("config", sa.JSON())
)
_events = sa.table(
    "events",
    *(sa.column(name, sa.String()) for name in ("id", "session_id", "type", "thread_id")),
    sa.column("payload", sa.JSON()),
)
_texts = sa.table(
    "search_texts", *(sa.column(name, sa.String()) for name in ("workspace_id", "session_id", "event_id", "words"))
)
_labels = sa.table(
    "session_labels",
    *(sa.column(name, sa.String()) for name in ("session_id", "kind", "label", "workspace_id")),
    sa.column("created_at", sa.DateTime(timezone=True)),
)


def _fill(connection: sa.Connection) -> None:
    """From what is there, a batch at a time: a log may be larger than the memory."""
    of_session = (_versions.c.agent_id == _sessions.c.agent_id) & (_versions.c.version == _sessions.c.agent_version)
    model = _versions.c.config["model"]["id"].as_string()
    last = ""
    while True:
        rows = connection.execute(
            sa.select(
                _sessions.c.id,
                _sessions.c.workspace_id,
                _sessions.c.title,
                _sessions.c.meta,
                _sessions.c.created_at,
                model.label("model"),
            )
            .join_from(_sessions, _versions, of_session)
            .where(_sessions.c.id > last)
            .order_by(_sessions.c.id)
            .limit(_BATCH)
        ).all()
        if not rows:
            break
        last = rows[-1].id
        connection.execute(
            sa.update(_sessions)
            .where(_sessions.c.id == sa.bindparam("this"))
            .values(model=sa.bindparam("its_model"), provider=sa.bindparam("its_provider")),
            [{"this": row.id, "its_model": row.model, "its_provider": row.model.partition(":")[0]} for row in rows],
        )
        titles = [
            {"workspace_id": row.workspace_id, "session_id": row.id, "event_id": None, "words": indexed(row.title)}
            for row in rows
            if row.title
        ]
        if titles:
            connection.execute(sa.insert(_texts), titles)
        labels = [
            {
                "session_id": row.id,
                "kind": "metadata",
                "label": f"{key}={value}",
                "workspace_id": row.workspace_id,
                "created_at": row.created_at,
            }
            for row in rows
            for key, value in row.meta.items()
        ]
        if labels:
            connection.execute(sa.insert(_labels), labels)
    last = ""
    while True:
        # By id, which is by time: what is newer comes later in the index, too.
        rows = connection.execute(
            sa.select(_events.c.id, _events.c.session_id, _events.c.payload, _sessions.c.workspace_id)
            .join_from(_events, _sessions, _sessions.c.id == _events.c.session_id)
            .where(_events.c.type.in_(("user.message", "agent.message")), _events.c.thread_id.is_(None), _events.c.id > last)
            .order_by(_events.c.id)
            .limit(_BATCH)
        ).all()
        if not rows:
            break
        last = rows[-1].id
        connection.execute(
            sa.insert(_texts),
            [
                {
                    "workspace_id": row.workspace_id,
                    "session_id": row.session_id,
                    "event_id": row.id,
                    "words": indexed("".join(part.get("text", "") for part in row.payload["content"])),
                }
                for row in rows
            ],
        )
