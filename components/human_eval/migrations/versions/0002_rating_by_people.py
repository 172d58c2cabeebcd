"""What the review service needs: leases, skips, practice answers, closures, drafts, and a rubric on judgements.

A closed batch accepts nothing: triggers see to it, whoever writes.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_APPEND_ONLY = ("evidence_leases", "evidence_skips", "evidence_practice", "evidence_closures")
_SHUT_WITH_THE_BATCH = ("evidence_judgements", "evidence_leases", "evidence_skips", "evidence_practice")
_BATCH_IS_CLOSED = (
    "EXISTS (SELECT 1 FROM evidence_items i JOIN evidence_closures c ON c.batch_id = i.batch_id "
    "WHERE i.item_id = NEW.item_id)"
)


def upgrade() -> None:
    """Adds the tables and the column."""
    op.add_column("evidence_judgements", sa.Column("rubric", sa.JSON, nullable=True))
    _create_leases()
    _create_answers_that_are_no_judgements()
    _create_closures_and_drafts()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgres()
    else:
        _guard_sqlite()


def downgrade() -> None:
    """Refuses: evidence is never dropped by a migration."""
    raise RuntimeError("the evidence tables are append-only; export and drop them by hand if you must")


def _create_leases() -> None:
    op.create_table(
        "evidence_leases",
        sa.Column("lease_id", sa.String(64), primary_key=True),
        sa.Column("task_id", sa.String(64), nullable=False, index=True),
        _item(),
        _rater(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("granted_at", sa.String(40), nullable=False),
        sa.Column("expires_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("task_id", "number", name="uq_evidence_leases_number"),
        sa.CheckConstraint("kind IN ('vote', 'gold', 'repeat', 'practice')", name="ck_evidence_leases_kind"),
    )


def _create_answers_that_are_no_judgements() -> None:
    op.create_table(
        "evidence_skips",
        sa.Column("task_id", sa.String(64), primary_key=True),
        _item(),
        _rater(),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=True),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "evidence_practice",
        sa.Column("task_id", sa.String(64), primary_key=True),
        _item(),
        _rater(),
        sa.Column("swapped", sa.Boolean, nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("correct", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad')", name="ck_evidence_practice_choice"),
    )


def _create_closures_and_drafts() -> None:
    op.create_table(
        "evidence_closures",
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("evidence_batches.batch_id"), primary_key=True),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "evidence_drafts",
        sa.Column("task_id", sa.String(64), primary_key=True),
        sa.Column("content", sa.JSON, nullable=False),
        sa.Column("saved_at", sa.String(40), nullable=False),
    )


def _item() -> sa.Column:
    return sa.Column("item_id", sa.String(64), sa.ForeignKey("evidence_items.item_id"), nullable=False, index=True)


def _rater() -> sa.Column:
    return sa.Column("rater", sa.String(255), nullable=False, index=True)


def _guard_sqlite() -> None:
    for table in _APPEND_ONLY:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )
    for table in _SHUT_WITH_THE_BATCH:
        op.execute(
            f"CREATE TRIGGER {table}_closed BEFORE INSERT ON {table} WHEN {_BATCH_IS_CLOSED} "
            "BEGIN SELECT RAISE(ABORT, 'the batch is closed'); END"
        )


def _guard_postgres() -> None:
    for table in _APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION evidence_append_only()"
        )
    op.execute(
        "CREATE FUNCTION evidence_batch_open() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN IF {_BATCH_IS_CLOSED} THEN RAISE EXCEPTION 'the batch is closed'; END IF; RETURN NEW; END $$"
    )
    for table in _SHUT_WITH_THE_BATCH:
        op.execute(
            f"CREATE TRIGGER {table}_closed BEFORE INSERT ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION evidence_batch_open()"
        )
