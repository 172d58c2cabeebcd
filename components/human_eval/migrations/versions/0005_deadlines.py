"""When people's time for a batch is up. Batches that are there already have none stored; their settings tell it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column."""
    op.add_column("evidence_batches", sa.Column("deadline", sa.String(40), nullable=True))


def downgrade() -> None:
    """Refuses: evidence is never dropped by a migration."""
    raise RuntimeError("the evidence tables are append-only; export and drop them by hand if you must")
