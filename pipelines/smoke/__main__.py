"""`python -m pipelines.smoke`."""

from pipelines.smoke.run import main

main()
