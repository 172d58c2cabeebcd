"""Tables of the evidence database. They only ever grow: a correction is a new row that supersedes an old one.

    batch (what was compared, by digest) 1-n item (a blind pair) 1-n judgement (one rater's answer, as shown)

Triggers refuse updates and deletions. Every id is derived from what the row is about, so that a step that runs again,
or a request that arrives twice, finds its own row and adds nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, Boolean, CheckConstraint, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["CHOICES", "TABLES", "VERSION_TABLE", "BatchRow", "EvidenceBase", "ItemRow", "JudgementRow"]

VERSION_TABLE = "alembic_version_human_eval"
"""Alembic's bookkeeping; a name of its own, because the database is shared with the release ledger."""

CHOICES = ("a", "b", "tie", "both_bad")


class EvidenceBase(DeclarativeBase):
    """Base of the evidence tables."""

    type_annotation_map: ClassVar = {dict[str, Any]: JSON, list[str]: JSON}


class BatchRow(EvidenceBase):
    """One evaluation put before raters."""

    __tablename__ = "evidence_batches"

    batch_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    evaluation_digest: Mapped[str] = mapped_column(String(64), index=True)
    dataset_digest: Mapped[str] = mapped_column(String(64))
    models: Mapped[dict[str, Any]] = mapped_column(doc="Role to {digest, step, name}.")
    settings: Mapped[dict[str, Any]]
    seed: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class ItemRow(EvidenceBase):
    """A pair of answers to one prompt; `first` and `second` as in the comparison's name, not as on the screen."""

    __tablename__ = "evidence_items"
    __table_args__ = (
        UniqueConstraint("batch_id", "comparison", "kind", "prompt_id", name="uq_evidence_items_content"),
        CheckConstraint("kind IN ('pair', 'identical', 'gold')", name="ck_evidence_items_kind"),
    )

    item_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("evidence_batches.batch_id"), index=True)
    comparison: Mapped[str] = mapped_column(String(80))
    kind: Mapped[str] = mapped_column(String(16))
    position: Mapped[int] = mapped_column(Integer, doc="Place of the prompt in the fixed order.")
    prompt_id: Mapped[str] = mapped_column(String(255))
    slice: Mapped[str] = mapped_column(String(255))
    prompt: Mapped[Any] = mapped_column(JSON)
    first: Mapped[dict[str, Any]] = mapped_column(doc="{role, response, n_tokens, finished}.")
    second: Mapped[dict[str, Any]]


class JudgementRow(EvidenceBase):
    """What one rater said about one item, as it was shown."""

    __tablename__ = "evidence_judgements"
    __table_args__ = (
        UniqueConstraint("item_id", "rater", "kind", "revision", name="uq_evidence_judgements_revision"),
        CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad')", name="ck_evidence_judgements_choice"),
        CheckConstraint("kind IN ('vote', 'gold', 'repeat')", name="ck_evidence_judgements_kind"),
        CheckConstraint("rater_kind IN ('human', 'ai', 'simulated')", name="ck_evidence_judgements_rater_kind"),
        CheckConstraint("(revision = 0) = (supersedes IS NULL)", name="ck_evidence_judgements_supersedes"),
    )

    judgement_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("evidence_items.item_id"), index=True)
    rater: Mapped[str] = mapped_column(String(255), doc="Pseudonym.")
    rater_kind: Mapped[str] = mapped_column(String(16))
    kind: Mapped[str] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(Integer, default=0)
    supersedes: Mapped[str | None] = mapped_column(ForeignKey("evidence_judgements.judgement_id"), unique=True)
    swapped: Mapped[bool] = mapped_column(Boolean, doc="True when the second answer was shown as A.")
    choice: Mapped[str] = mapped_column(String(16))
    flags_a: Mapped[list[str]]
    flags_b: Mapped[list[str]]
    rationale: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


TABLES = (BatchRow.__tablename__, ItemRow.__tablename__, JudgementRow.__tablename__)
