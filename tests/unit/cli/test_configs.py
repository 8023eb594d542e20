"""Options and frozen configs say the same: every field has its option, with the same default."""

from __future__ import annotations

import dataclasses
from typing import Any

import click
import pytest

from kdcache.cli.main import group
from kdcache.cli.options import Settings
from kdcache.distill import DistillConfig
from kdcache.dump import DumpConfig
from kdcache.teacher_training import TeacherConfig

COMMANDS: list[tuple[str, Any, set[str]]] = [
    ("dump-teacher", DumpConfig, {"dry_run", "catalog", "wait"}),  # where to look, not what is dumped
    ("distill", DistillConfig, set()),
    ("train-teacher", TeacherConfig, set()),
]
SHARED = {"as_json", "config", "verbose", "quiet", "settings"}
GIVEN_OTHERWISE = {"options"}  # --set NAME=VALUE


def options_of(name: str) -> dict[str, click.Parameter]:
    with group.make_context("kdcache", [], obj=Settings(), resilient_parsing=True) as ctx:
        command = group.get_command(ctx, name)
    assert command is not None
    return {param.name: param for param in command.params if param.name is not None and param.name not in SHARED}


@pytest.mark.parametrize(
    ("name", "config", "more"), COMMANDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_field_has_an_option_and_every_option_a_field(name: str, config: Any, more: set[str]) -> None:
    fields = {field.name for field in dataclasses.fields(config)}
    assert set(options_of(name)) - more == fields - GIVEN_OTHERWISE


@pytest.mark.parametrize(
    ("name", "config", "more"), COMMANDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_defaults_are_the_same(name: str, config: Any, more: set[str]) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    options = options_of(name)
    with click.Context(click.Command(name)) as ctx:
        defaults = {key: param.type_cast_value(ctx, param.get_default(ctx)) for key, param in options.items()}
    for key, default in defaults.items():
        if key in more:
            continue
        if isinstance(default, tuple):  # a list option: its default is the one value of the field
            (default,) = default
        assert (default or None) == (fields[key] or None), key
