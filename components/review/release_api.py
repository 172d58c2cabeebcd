"""The JSON API for releases: what the release pages show and do, for programs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from components.review.access import Manager, Reader, ReviewOf
from components.review.releases import ModelState, ReleaseState, release_as_json

__all__ = ["LONGEST_REASON", "router"]

LONGEST_REASON = 4000

router = APIRouter(prefix="/api/v1", tags=["releases"])


class Reason(BaseModel):
    """Why; it stays on the ledger."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=LONGEST_REASON)


class Approval(Reason):
    """An approval, bound to the verdict that was looked at."""

    binding: str


@router.get("/models")
def models(user: Reader, review: ReviewOf) -> list[ModelState]:
    """Every model on the ledger, with its champion and what awaits approval."""
    return review.board.models()


@router.get("/models/{model}/releases")
def releases(model: str, user: Reader, review: ReviewOf) -> list[ReleaseState]:
    """A model's releases, the newest first."""
    return review.board.releases(model)


@router.get("/models/{model}/releases/{version}")
def release(model: str, version: str, user: Reader, review: ReviewOf) -> dict[str, Any]:
    """A release: verdict, criteria, statistics, trajectory, sample pairs, history."""
    return release_as_json(review.board.release(model, version))


@router.get("/models/{model}/history")
def history(model: str, user: Reader, review: ReviewOf) -> list[dict[str, Any]]:
    """The model's whole ledger, oldest entry first."""
    return review.board.history(model)


@router.get("/models/{model}/verify")
def verify(model: str, user: Reader, review: ReviewOf) -> dict[str, Any]:
    """Replays the model's ledger: hashes, legal moves, anchors."""
    return review.board.verify(model)


@router.post("/models/{model}/releases/{version}/approve")
def approve(model: str, version: str, given: Approval, user: Manager, review: ReviewOf) -> dict[str, Any]:
    """Approves; with the last approval that the policy asks for, the version goes live."""
    result = review.board.approve(model, version, actor=user.login, reason=given.reason, binding=given.binding)
    review.metrics.decisions.labels("approve").inc()
    return result


@router.post("/models/{model}/releases/{version}/reject")
def reject(model: str, version: str, given: Reason, user: Manager, review: ReviewOf) -> dict[str, Any]:
    """Rejects, for good."""
    result = review.board.reject(model, version, actor=user.login, reason=given.reason)
    review.metrics.decisions.labels("reject").inc()
    return result


@router.post("/models/{model}/releases/{version}/rollback")
def rollback(model: str, version: str, given: Reason, user: Manager, review: ReviewOf) -> dict[str, Any]:
    """Takes the live version back and restores the one before it."""
    result = review.board.rollback(model, version, actor=user.login, reason=given.reason)
    review.metrics.decisions.labels("rollback").inc()
    return result
