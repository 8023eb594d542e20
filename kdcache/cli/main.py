"""The `kdcache` command: finds the sub-command, runs it, turns whatever happens into output and an exit code.

Sub-commands are imported when they are named, and each imports the library when it runs, so that help stays fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from kdcache.cli.failures import report_failure
from kdcache.cli.options import HELP_WIDTH, Settings, settings_options, start_session
from kdcache.cli.output import close_stdout, restart_stdout
from kdcache.nearest import did_you_mean
from kdcache.version import __version__

# Name -> what it does. The module is kdcache.cli.NAME with underscores; its click command is called `command`.
COMMANDS: dict[str, str] = {
    "dump-teacher": "Run a teacher once over a data set and keep its opinion in a store.",
    "distill": "Train students from a store; the teacher is not needed.",
    "train-teacher": "Train a teacher when there are no weights to start from.",
    "info": "Show what a store is and holds, without reading its arrays.",
    "stats": "Show what a store says about its teacher, its k and its views.",
    "derive": "Make a smaller store from a store, without its teacher.",
    "merge": "Average the stores of several teachers into one.",
    "join": "Put stores of neighbouring rows together into one.",
    "verify": "Check every byte of a store against its ledger.",
    "push": "Copy a sealed store to S3 or another place, and publish it there.",
    "pull": "Copy a store, or a part of it, from a URL to a local folder.",
    "catalog": "Find and share stores: add, list, find, show, remove, build.",
    "report": "Draw a store, or compare finished runs, as a page or a table.",
    "methods": "List the distillation methods, what each needs and its options.",
    "datasets": "List the data cards that come with kdcache.",
}


class LazyGroup(click.Group):
    """A group that imports a sub-command only when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The sub-command of a name, or None."""
        name = cmd_name.replace("_", "-")
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kdcache.cli.{name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, but an unknown name is answered with the nearest ones in every click version."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"no command {args[0]!r}; {did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the sub-commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH})
@click.version_option(__version__, prog_name="kdcache", message="%(prog)s %(version)s")
def group() -> None:
    """Run a teacher once per team; train every student from the verified store.

    With no option at all, `kdcache dump-teacher` and then `kdcache distill --topk 10` work on the sample that comes
    with kdcache. Results go to standard output, everything else to standard error.

    Every option can also be set in the environment (KDCACHE_DISTILL_EPOCHS for one command, KDCACHE_EPOCHS for all)
    and in a TOML file (--config); the command line wins over the environment, the environment over the file.

    Exit codes: 0 ok, 1 a check said no, 2 usage, 3 not found or incompatible, 4 corrupt, 5 remote, 6 out of space,
    memory or locked, 70 a bug in kdcache, 130 interrupted.
    """


group.params.extend(settings_options())


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing but the result goes to stdout.

    Args:
        arguments: the words after `kdcache`.
    """
    restart_stdout()
    settings = Settings()
    try:
        with (
            start_session(settings),
            group.make_context("kdcache", list(arguments), obj=settings, auto_envvar_prefix="KDCACHE") as ctx,
        ):
            code = group.invoke(ctx)
    except click.exceptions.Exit as done:
        code = done.exit_code
    except BaseException as error:  # noqa: BLE001 - every failure becomes a message and an exit code, here only
        code = report_failure(error, arguments, verbose=settings.verbose)
    return close_stdout(code or 0)


def main() -> NoReturn:
    """Entry point of the console script and of `python -m kdcache`."""
    if "_KDCACHE_COMPLETE" in os.environ:  # click's own protocol for completion in bash, zsh and fish
        group.main(prog_name="kdcache")
    sys.exit(run(sys.argv[1:]))
