"""Tables of the evidence database. They only ever grow: a correction is a new row that supersedes an old one.

    batch (what was compared, by digest) 1-n item (a blind pair) 1-n judgement (one rater's answer, as shown)
                                                                1-n lease, skip, practice answer (of one rater)
          0-1 closure                           0-n intervention (a release manager's: on an item, or on a rater)
          0-n import (of labels from another tool, by whom) 1-n judgement

Triggers refuse updates and deletions. Every id is derived from what the row is about, so that a step that runs again,
or a request that arrives twice, finds its own row and adds nothing. What is no evidence may change: the
drafts, which keep what a rater has begun to write until it is sent, and what the service remembers of sign-ins.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import JSON, Boolean, CheckConstraint, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "CHOICES",
    "DRAFTS",
    "INTERVENTIONS",
    "SIGN_IN",
    "TABLES",
    "VERSION_TABLE",
    "BatchRow",
    "ClosureRow",
    "DraftRow",
    "EndedSessionRow",
    "EvidenceBase",
    "ImportRow",
    "InterventionRow",
    "ItemRow",
    "JudgementRow",
    "LeaseRow",
    "LinkRow",
    "PracticeRow",
    "SkipRow",
]

VERSION_TABLE = "alembic_version_human_eval"
"""Alembic's bookkeeping; a name of its own, because the database is shared with the release ledger."""

CHOICES = ("a", "b", "tie", "both_bad")

INTERVENTIONS = ("return_skip", "dismiss", "adjudicate")
"""What a release manager may do to an open batch: see `InterventionRow`."""


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
    deadline: Mapped[str | None] = mapped_column(String(40), doc="UTC, ISO 8601; None in rows of older versions.")


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
    rubric: Mapped[dict[str, Any] | None] = mapped_column(
        JSON(none_as_null=True), doc="Dimension to the better answer as shown: a, b or tie."
    )
    adjudication: Mapped[str | None] = mapped_column(
        String(64), doc="The intervention that asked for it; such a vote never changes an outcome."
    )
    import_id: Mapped[str | None] = mapped_column(String(64), doc="The import that it came by; None: given here.")


class LeaseRow(EvidenceBase):
    """An item handed to a rater, who alone may judge it until the lease ends. A renewal is a new row."""

    __tablename__ = "evidence_leases"
    __table_args__ = (
        UniqueConstraint("task_id", "number", name="uq_evidence_leases_number"),
        CheckConstraint("kind IN ('vote', 'gold', 'repeat', 'practice')", name="ck_evidence_leases_kind"),
    )

    lease_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    task_id: Mapped[str] = mapped_column(String(64), index=True, doc="Derived from item, rater and kind.")
    item_id: Mapped[str] = mapped_column(ForeignKey("evidence_items.item_id"), index=True)
    rater: Mapped[str] = mapped_column(String(255), index=True, doc="Pseudonym.")
    kind: Mapped[str] = mapped_column(String(16))
    number: Mapped[int] = mapped_column(Integer, doc="0 for the first lease of this task, then 1, 2, ...")
    granted_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")
    expires_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class SkipRow(EvidenceBase):
    """An item that a rater did not want to judge; it goes to others and never comes back unasked.

    The key is the task's id, or, for a skip after the item was returned, derived from it and the skips before.
    """

    __tablename__ = "evidence_skips"

    task_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("evidence_items.item_id"), index=True)
    rater: Mapped[str] = mapped_column(String(255), index=True, doc="Pseudonym.")
    kind: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class PracticeRow(EvidenceBase):
    """A rater's answer to a practice item; in a table of its own, so that it can never count as a judgement."""

    __tablename__ = "evidence_practice"
    __table_args__ = (CheckConstraint("choice IN ('a', 'b', 'tie', 'both_bad')", name="ck_evidence_practice_choice"),)

    task_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("evidence_items.item_id"), index=True)
    rater: Mapped[str] = mapped_column(String(255), index=True, doc="Pseudonym.")
    swapped: Mapped[bool] = mapped_column(Boolean)
    choice: Mapped[str] = mapped_column(String(16))
    correct: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class ClosureRow(EvidenceBase):
    """The end of a batch: nothing is accepted after it."""

    __tablename__ = "evidence_closures"

    batch_id: Mapped[str] = mapped_column(ForeignKey("evidence_batches.batch_id"), primary_key=True)
    actor: Mapped[str] = mapped_column(String(255), doc="Who closed it: a release manager, or a service.")
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class InterventionRow(EvidenceBase):
    """What a release manager did to a batch that cannot go on by itself, or that deserves a second look.

    `return_skip`: those who skipped `item_id` may get it again. `dismiss`: the votes of `rater`, who owes the checks
    that would make them count, are set aside, and others get the pairs. `adjudicate`: `votes` further raters judge
    `item_id`.
    """

    __tablename__ = "evidence_interventions"
    __table_args__ = (
        CheckConstraint("kind IN ('return_skip', 'dismiss', 'adjudicate')", name="ck_evidence_interventions_kind"),
    )

    intervention_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("evidence_batches.batch_id"), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    item_id: Mapped[str | None] = mapped_column(ForeignKey("evidence_items.item_id"), index=True)
    rater: Mapped[str | None] = mapped_column(String(255), doc="Pseudonym.")
    votes: Mapped[int] = mapped_column(Integer, doc="Further votes that are asked for; 0 if none are.")
    actor: Mapped[str] = mapped_column(String(255), doc="The release manager.")
    reason: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class ImportRow(EvidenceBase):
    """A file of labels from another tool, written before its first label is taken: see `imports.Import`."""

    __tablename__ = "evidence_imports"

    import_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    batch_id: Mapped[str] = mapped_column(ForeignKey("evidence_batches.batch_id"), index=True)
    actor: Mapped[str] = mapped_column(String(255), doc="Login of who imported it.")
    written_by: Mapped[str] = mapped_column(String(255), doc="Account and machine of the process.")
    source: Mapped[str] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(String(64), doc="sha256 of the file.")
    labels: Mapped[int] = mapped_column(Integer, doc="Labels in the file.")
    created_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class DraftRow(EvidenceBase):
    """What a rater has begun to answer; replaced as he goes on, deleted when it is sent. No evidence."""

    __tablename__ = "evidence_drafts"

    task_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    content: Mapped[dict[str, Any]]
    saved_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")


class LinkRow(EvidenceBase):
    """A one-time link with which somebody signs in to the review service; marked once it was used. No evidence."""

    __tablename__ = "review_links"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True, doc="sha256 of the token, never the token.")
    login: Mapped[str] = mapped_column(String(255))
    issued_at: Mapped[str] = mapped_column(String(40), doc="UTC, ISO 8601.")
    used_at: Mapped[str | None] = mapped_column(String(40), doc="UTC, ISO 8601.")


class EndedSessionRow(EvidenceBase):
    """A sign-in that was ended before its cookie runs out. No evidence."""

    __tablename__ = "review_ended_sessions"

    session: Mapped[str] = mapped_column(String(64), primary_key=True)
    ended_at: Mapped[str] = mapped_column(String(40), index=True, doc="UTC, ISO 8601.")


TABLES = tuple(
    row.__tablename__
    for row in (
        BatchRow,
        ItemRow,
        JudgementRow,
        LeaseRow,
        SkipRow,
        PracticeRow,
        ClosureRow,
        InterventionRow,
        ImportRow,
    )
)
"""What is append-only."""

SIGN_IN = (LinkRow.__tablename__, EndedSessionRow.__tablename__)

DRAFTS = DraftRow.__tablename__
