"""Batches, items and judgements, with triggers that refuse updates and deletions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = ("evidence_batches", "evidence_items", "evidence_judgements")


def upgrade() -> None:
    """Creates the tables."""
    _create_batches()
    _create_items()
    _create_judgements()
    if op.get_bind().dialect.name == "postgresql":
        _guard_postgres()
    else:
        _guard_sqlite()


def downgrade() -> None:
    """Refuses: evidence is never dropped by a migration."""
    raise RuntimeError("the evidence tables are append-only; export and drop them by hand if you must")


def _create_batches() -> None:
    op.create_table(
        "evidence_batches",
        sa.Column("batch_id", sa.String(64), primary_key=True),
        sa.Column("evaluation_digest", sa.String(64), nullable=False, index=True),
        sa.Column("dataset_digest", sa.String(64), nullable=False),
        sa.Column("models", sa.JSON, nullable=False),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )


def _create_items() -> None:
    op.create_table(
        "evidence_items",
        sa.Column("item_id", sa.String(64), primary_key=True),
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("evidence_batches.batch_id"), nullable=False, index=True),
        sa.Column("comparison", sa.String(80), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("prompt_id", sa.String(255), nullable=False),
        sa.Column("slice", sa.String(255), nullable=False),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("first", sa.JSON, nullable=False),
        sa.Column("second", sa.JSON, nullable=False),
        sa.UniqueConstraint("batch_id", "comparison", "kind", "prompt_id", name="uq_evidence_items_content"),
        sa.CheckConstraint("kind IN ('pair', 'identical', 'gold')", name="ck_evidence_items_kind"),
    )


def _create_judgements() -> None:
    op.create_table(
        "evidence_judgements",
        sa.Column("judgement_id", sa.String(64), primary_key=True),
        sa.Column("item_id", sa.String(64), sa.ForeignKey("evidence_items.item_id"), nullable=False, index=True),
        sa.Column("rater", sa.String(255), nullable=False),
        sa.Column("rater_kind", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column(
            "supersedes", sa.String(64), sa.ForeignKey("evidence_judgements.judgement_id"), unique=True, nullable=True
        ),
        sa.Column("swapped", sa.Boolean, nullable=False),
        sa.Column("choice", sa.String(16), nullable=False),
        sa.Column("flags_a", sa.JSON, nullable=False),
        sa.Column("flags_b", sa.JSON, nullable=False),
        sa.Column("rationale", sa.Text, nullable=True),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("item_id", "rater", "kind", "revision", name="uq_evidence_judgements_revision"),
        sa.CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad')", name="ck_evidence_judgements_choice"),
        sa.CheckConstraint("kind IN ('vote', 'gold', 'repeat')", name="ck_evidence_judgements_kind"),
        sa.CheckConstraint("rater_kind IN ('human', 'ai', 'simulated')", name="ck_evidence_judgements_rater_kind"),
        sa.CheckConstraint("(revision = 0) = (supersedes IS NULL)", name="ck_evidence_judgements_supersedes"),
    )


def _guard_sqlite() -> None:
    for table in _TABLES:
        for action in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{action.lower()} BEFORE {action} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
            )


def _guard_postgres() -> None:
    op.execute(
        "CREATE FUNCTION evidence_append_only() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
    )
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION evidence_append_only()"
        )
