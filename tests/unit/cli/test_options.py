"""Where an option's value comes from, and the value types; read from click's contexts, no command is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from kdcache.cli.main import COMMANDS, group
from kdcache.cli.options import Settings
from kdcache.errors import ConfigError, NotFoundError


def parsed(*words: str) -> dict[str, Any]:
    """The values a command line gives to its sub-command."""
    with group.make_context("kdcache", list(words), obj=Settings(), auto_envvar_prefix="KDCACHE") as outer:
        rest = [*getattr(outer, "_protected_args", []), *outer.args]
        name, command, arguments = group.resolve_command(outer, rest)
        assert command is not None
        with command.make_context(name, arguments, parent=outer) as inner:
            return dict(inner.params)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kdcache.toml"
    path.write_text('batch-size = 33\ndevice = "cpu"\n\n[dump-teacher]\ntopk = 7\nbatch_size = 44\n')
    return path


def test_a_default_holds_when_nothing_else_is_said() -> None:
    assert parsed("dump-teacher")["batch_size"] == 256


def test_the_file_beats_the_default_and_its_table_beats_its_top_level(file: Path) -> None:
    values = parsed("--config", str(file), "dump-teacher")
    assert (values["topk"], values["batch_size"], values["device"]) == (7, 44, "cpu")
    assert parsed("--config", str(file), "distill")["batch_size"] == 33


def test_the_environment_beats_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_TOPK", "8")
    assert parsed("--config", str(file), "dump-teacher")["topk"] == 8


def test_a_commands_own_variable_beats_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_TOPK", "8")
    monkeypatch.setenv("KDCACHE_DUMP_TEACHER_TOPK", "9")
    assert parsed("dump-teacher")["topk"] == 9


def test_the_flag_beats_everything(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDCACHE_TOPK", "8")
    assert parsed("--config", str(file), "dump-teacher", "--topk", "all")["topk"] == "all"


def test_the_file_may_be_named_after_the_command_or_in_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parsed("dump-teacher", "--config", str(file))["topk"] == 7
    monkeypatch.setenv("KDCACHE_CONFIG", str(file))
    assert parsed("dump-teacher")["topk"] == 7


def test_lists_and_tables_of_the_file_reach_list_options(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text('[distill]\nmethod = ["ce", "kd"]\nseed = [0, 1]\n[distill.set]\nbeta = 0.2\n')
    values = parsed("--config", str(path), "distill")
    assert (values["method"], values["seed"], values["settings"]) == (("ce", "kd"), (0, 1), ("beta=0.2",))


@pytest.mark.parametrize(
    ("text", "found", "hint"),
    [
        ("[dump-teacher]\ntopkk = 3\n", "topkk", "topk"),
        ("batchsize = 3\n", "batchsize", "batch_size"),
        ("[dump-techer]\ntopk = 3\n", "dump-techer", "dump-teacher"),
        ("topk = = 3\n", "not a TOML file", ""),
    ],
)
def test_a_file_with_a_mistake_names_it_and_the_nearest_word(tmp_path: Path, text: str, found: str, hint: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        parsed("--config", str(path), "dump-teacher")
    assert found in caught.value.message
    assert hint in caught.value.hint


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"absent\.toml"):
        parsed("--config", str(tmp_path / "absent.toml"), "info")


@pytest.mark.parametrize("value", ["0", "-1", "ten", "1.5", ""])
def test_topk_is_a_count_or_all(value: str) -> None:
    with pytest.raises(click.UsageError, match="at least 1, or 'all'"):
        parsed("dump-teacher", "--topk", value)


def test_comma_lists_keep_order_and_drop_repeats() -> None:
    values = parsed("distill", "--method", "kd, ce,kd", "--seed", "2,0")
    assert (values["method"], values["seed"]) == (("kd", "ce"), (2, 0))


@pytest.mark.parametrize(("name", "value"), [("--seed", "1,two"), ("--seed", ""), ("--method", "ce,,kd")])
def test_comma_lists_refuse_gaps_and_words_for_numbers(name: str, value: str) -> None:
    with pytest.raises(click.UsageError, match="commas between them"):
        parsed("distill", name, value)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_a_page_of_help_and_says_what_each_option_is(name: str) -> None:
    with group.make_context("kdcache", [], obj=Settings(), resilient_parsing=True) as ctx:
        command = group.get_command(ctx, name)
    assert command is not None
    assert command.help
    assert all(param.help for param in command.params if isinstance(param, click.Option))
