"""Plumbline on a cluster."""

from pipelines.cluster.compilation import compile_pipeline

__all__ = ["compile_pipeline"]
