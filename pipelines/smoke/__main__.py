"""`python -m pipelines.smoke`."""

from __future__ import annotations

from kdcache.parallel import run_recipe
from pipelines.smoke.run import main

if __name__ == "__main__":
    run_recipe(main)
