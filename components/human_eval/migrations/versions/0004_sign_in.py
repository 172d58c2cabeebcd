"""What the review service must not forget when it is started again: one-time links, and who has signed out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the tables."""
    op.create_table(
        "review_links",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("login", sa.String(255), nullable=False),
        sa.Column("issued_at", sa.String(40), nullable=False),
        sa.Column("used_at", sa.String(40), nullable=True),
    )
    op.create_table(
        "review_ended_sessions",
        sa.Column("session", sa.String(64), primary_key=True),
        sa.Column("ended_at", sa.String(40), nullable=False, index=True),
    )


def downgrade() -> None:
    """Removes the tables: they are no evidence."""
    op.drop_table("review_ended_sessions")
    op.drop_table("review_links")
