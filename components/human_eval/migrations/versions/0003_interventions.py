"""What a release manager may do about a batch, adjudicated votes, and an order in which rows can be followed.

A closed batch still takes the votes that a release manager asks further raters for (adjudication): they are marked, and
no outcome reads them. On Postgres each table that the rating desk follows numbers its rows; SQLite does so by itself.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_FOLLOWED = (
    "evidence_judgements",
    "evidence_leases",
    "evidence_skips",
    "evidence_practice",
    "evidence_closures",
    "evidence_interventions",
)
_CLOSED = (
    "EXISTS (SELECT 1 FROM evidence_items i JOIN evidence_closures c ON c.batch_id = i.batch_id "
    "WHERE i.item_id = NEW.item_id)"
)
_ASKED_FOR = "EXISTS (SELECT 1 FROM evidence_interventions x WHERE x.kind = 'adjudicate' AND x.item_id = NEW.item_id)"
_NOT_ADJUDICATED = "(NEW.adjudication IS NULL OR NEW.supersedes IS NOT NULL)"
_REFUSED = {
    "evidence_judgements": f"{_CLOSED} AND ({_NOT_ADJUDICATED} OR NOT {_ASKED_FOR})",
    "evidence_leases": f"{_CLOSED} AND NOT {_ASKED_FOR}",
    "evidence_skips": f"{_CLOSED} AND NOT {_ASKED_FOR}",
}


def upgrade() -> None:
    """Adds the table and the column, and lets adjudicated votes into closed batches."""
    op.create_table(
        "evidence_interventions",
        sa.Column("intervention_id", sa.String(64), primary_key=True),
        sa.Column("batch_id", sa.String(64), sa.ForeignKey("evidence_batches.batch_id"), nullable=False, index=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("item_id", sa.String(64), sa.ForeignKey("evidence_items.item_id"), nullable=True, index=True),
        sa.Column("rater", sa.String(255), nullable=True),
        sa.Column("votes", sa.Integer, nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.CheckConstraint("kind IN ('return_skip', 'dismiss', 'adjudicate')", name="ck_evidence_interventions_kind"),
    )
    op.add_column("evidence_judgements", sa.Column("adjudication", sa.String(64), nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        _change_postgres()
    else:
        _change_sqlite()


def downgrade() -> None:
    """Refuses: evidence is never dropped by a migration."""
    raise RuntimeError("the evidence tables are append-only; export and drop them by hand if you must")


def _change_postgres() -> None:
    for table in _FOLLOWED:
        op.execute(f"ALTER TABLE {table} ADD COLUMN sequence BIGSERIAL NOT NULL")
        op.execute(f"CREATE UNIQUE INDEX uq_{table}_sequence ON {table} (sequence)")
    op.execute(
        "CREATE TRIGGER evidence_interventions_append_only BEFORE UPDATE OR DELETE ON evidence_interventions "
        "FOR EACH ROW EXECUTE FUNCTION evidence_append_only()"
    )
    for table, refused in _REFUSED.items():
        op.execute(f"DROP TRIGGER {table}_closed ON {table}")
        op.execute(
            f"CREATE FUNCTION {table}_open() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF {refused} THEN RAISE EXCEPTION 'the batch is closed'; END IF; RETURN NEW; END $$"
        )
        op.execute(
            f"CREATE TRIGGER {table}_closed BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_open()"
        )


def _change_sqlite() -> None:
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER evidence_interventions_no_{action.lower()} BEFORE {action} ON evidence_interventions "
            "BEGIN SELECT RAISE(ABORT, 'evidence_interventions is append-only'); END"
        )
    for table, refused in _REFUSED.items():
        op.execute(f"DROP TRIGGER {table}_closed")
        op.execute(
            f"CREATE TRIGGER {table}_closed BEFORE INSERT ON {table} WHEN {refused} "
            "BEGIN SELECT RAISE(ABORT, 'the batch is closed'); END"
        )
