"""`--config FILE.toml`: reads the file, checks every key, and hands the values to click as defaults.

Top-level keys apply to every command that has the option; a table named after a command to that one only, and wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from kdcache.errors import ConfigError, NotFoundError
from kdcache.nearest import did_you_mean

SESSION_OPTIONS = frozenset({"config", "verbose", "quiet", "help", "version"})


def apply_config_file(ctx: click.Context, path: Path) -> None:
    """Make a file's values the defaults of a context: the group's (for all commands) or one command's.

    Raises:
        NotFoundError: there is no such file.
        ConfigError: it is not TOML, or a key is not an option of any command it is meant for.
    """
    content = _read(path)
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    per_command = _defaults_per_command(ctx, group, content, path)
    if isinstance(ctx.command, click.Group):
        ctx.default_map = per_command
    else:
        # After the command's name: its values win over those of a file named before it.
        ctx.default_map = {**(ctx.default_map or {}), **per_command[ctx.info_name or ""]}


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise NotFoundError(f"--config {path}: there is no such file", hint="check the path of --config") from error
    except IsADirectoryError as error:
        raise ConfigError(f"--config {path}: expected a TOML file, found a folder") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: not a TOML file: {error}") from error


def _option_names(command: click.Command) -> dict[str, click.Parameter]:
    names = {}
    for param in command.params:
        for flag in (*param.opts, *param.secondary_opts):
            name = flag.lstrip("-").replace("-", "_")
            if param.name and len(name) > 1 and name not in SESSION_OPTIONS:
                names[name] = param
    return names


def _value(param: click.Parameter, value: Any) -> Any:
    if isinstance(value, Mapping):  # [distill.set] beta = 0.3 is the same as --set beta=0.3
        return [f"{key}={item}" for key, item in value.items()]
    if getattr(param, "multiple", False) and not isinstance(value, list):
        return [value]
    return value


def _defaults_per_command(
    ctx: click.Context, group: click.Group, content: Mapping[str, Any], path: Path
) -> dict[str, dict[str, Any]]:
    commands = {name: group.get_command(ctx, name) for name in group.list_commands(ctx)}
    options = {name: _option_names(command) for name, command in commands.items() if command is not None}
    tables = {key.replace("_", "-"): value for key, value in content.items() if isinstance(value, Mapping)}
    known_options = {name for names in options.values() for name in names}
    if strange := next((name for name in tables if name not in options), None):
        raise ConfigError(f"{path}: [{strange}] is not a command", hint=did_you_mean(strange, options))
    defaults: dict[str, dict[str, Any]] = {name: {} for name in options}
    for key, value in content.items():
        if isinstance(value, Mapping):
            continue
        name = key.replace("-", "_")
        if name not in known_options:
            hint = did_you_mean(name, known_options, listing="kdcache COMMAND --help lists them")
            raise ConfigError(f"{path}: {key!r} is not an option of any command", hint=hint)
        for command_name, names in options.items():
            if name in names:
                defaults[command_name][names[name].name or name] = _value(names[name], value)
    for command_name, table in tables.items():
        names = options[command_name]
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in names:
                hint = did_you_mean(name, names, listing=f"kdcache {command_name} --help lists them")
                raise ConfigError(f"{path}: [{command_name}] has no option {key!r}", hint=hint)
            defaults[command_name][names[name].name or name] = _value(names[name], value)
    return defaults
