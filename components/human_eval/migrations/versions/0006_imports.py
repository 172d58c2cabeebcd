"""Who brought labels in from another tool: a row for each import, and at each judgement the import that it came by.

Judgements that are there already name none: of which of them were imported nothing is known.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the table, append-only, and the column."""
    op.create_table(
        "evidence_imports",
        sa.Column("import_id", sa.String(64), primary_key=True),
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("evidence_batches.batch_id"), nullable=False, index=True),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("written_by", sa.String(255), nullable=False),
        sa.Column("source", sa.String(255), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("labels", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.add_column("evidence_judgements", sa.Column("import_id", sa.String(64), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER evidence_imports_append_only BEFORE UPDATE OR DELETE ON evidence_imports "
            "FOR EACH ROW EXECUTE FUNCTION evidence_append_only()"
        )
        return
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER evidence_imports_no_{action.lower()} BEFORE {action} ON evidence_imports "
            "BEGIN SELECT RAISE(ABORT, 'evidence_imports is append-only'); END"
        )


def downgrade() -> None:
    """Refuses: evidence is never dropped by a migration."""
    raise RuntimeError("the evidence tables are append-only; export and drop them by hand if you must")
