"""Container images of the stages. The pipeline's settings replace them per environment."""

from __future__ import annotations

import os

__all__ = ["LIGHT_IMAGE", "TRAIN_IMAGE"]

LIGHT_IMAGE = os.environ.get("PLUMBLINE_LIGHT_IMAGE", "plumbline-light:0.1.0")
"""Data, statistics, gate: no torch."""

TRAIN_IMAGE = os.environ.get("PLUMBLINE_TRAIN_IMAGE", "plumbline-train:0.1.0")
"""Everything that loads a model."""
