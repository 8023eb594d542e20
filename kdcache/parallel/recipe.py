"""How a recipe ends: one message and an exit code instead of a traceback, as with the `kdcache` command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from kdcache.errors import KdcacheError

EXIT_INTERRUPTED = 130


def run_recipe(main: Callable[[], int]) -> NoReturn:
    """Call a recipe's main function and exit with what it returns, for example `GridResult.exit_code`.

    An error of kdcache becomes its message and hint on stderr and its exit code; Ctrl-C becomes one line and 130. A bug
    keeps its traceback.
    """
    try:
        code = main()
    except KdcacheError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted\n  next: the same command continues where it stopped\n")
        code = EXIT_INTERRUPTED
    sys.exit(code)
