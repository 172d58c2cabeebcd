"""Settings of the prerequisites step."""

from __future__ import annotations

from pydantic import Field

from components.shared.settings import StrictModel

__all__ = ["PrerequisitesSettings"]


class PrerequisitesSettings(StrictModel):
    """What must be there before a GPU hour is spent."""

    min_free_disk_gib: float = Field(
        default=1.0, ge=0, description="Free disk, in GiB, where artifacts and checkpoints go."
    )
    require_gpu: bool = Field(default=False, description="Fail when no GPU is visible to the training steps.")
