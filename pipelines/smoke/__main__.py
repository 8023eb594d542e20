"""`python -m pipelines.smoke`."""

from __future__ import annotations

import sys

from pipelines.smoke.run import main

if __name__ == "__main__":
    sys.exit(main())
