"""Stage two: students from a sealed store."""

from __future__ import annotations

from kdcache.distill.config import DistillConfig, RunResult
from kdcache.distill.run import distill

__all__ = ["DistillConfig", "RunResult", "distill"]
