"""Client tokens: what browsers have instead of a key."""

import sqlalchemy as sa
from alembic import op

import storage.tables

revision = "0012_client_tokens"
down_revision = "0011_titles"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "client_tokens",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("workspace_id", sa.String(), nullable=False),
        sa.Column("session_id", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("grants", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", storage.tables.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", storage.tables.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name=op.f("fk_client_tokens_key_id_api_keys")),
        sa.ForeignKeyConstraint(["session_id"], ["sessions.id"], name=op.f("fk_client_tokens_session_id_sessions")),
        sa.ForeignKeyConstraint(["workspace_id"], ["workspaces.id"], name=op.f("fk_client_tokens_workspace_id_workspaces")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_client_tokens")),
        sa.UniqueConstraint("prefix", name=op.f("uq_client_tokens_prefix")),
    )
    op.create_index("ix_client_tokens_session_id", "client_tokens", ["session_id"])
    op.create_index("ix_client_tokens_expires_at", "client_tokens", ["expires_at"])


def downgrade() -> None:
    op.drop_index("ix_client_tokens_expires_at", "client_tokens")
    op.drop_index("ix_client_tokens_session_id", "client_tokens")
    op.drop_table("client_tokens")
