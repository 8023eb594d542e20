"""What a store says about its teacher, its k and its views, without teacher or data set."""

from __future__ import annotations

from kdcache.stats.figures import StoreStats
from kdcache.stats.survey import store_stats

__all__ = ["StoreStats", "store_stats"]
