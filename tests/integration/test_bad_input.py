"""Bad input at the command line: one clear error, the right exit code, a next step, and nothing lost or left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.main import run
from kdcache.errors import KdcacheError
from kdcache.store.info import describe
from tests.integration.small_world import MARKED_ROW, TRAIN_ROWS, World, images_and_labels, make_world, save_data

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a sealed store, made once; tests work on copies."""
    world = make_world(tmp_path_factory.mktemp("made"))
    assert run([*world.dump(out=str(world.folder / "store.zarr")), "-q"]) == 0
    return world


@pytest.fixture
def world(made: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of the world in a folder of its own, which is the working folder."""
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return World(tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder; caches of compiled code apart."""
    paths = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def refused(words: list[str], code: int, capsys: Captured, *found: str, untouched: bool = True) -> None:
    """Run a command that must fail: its exit code, one error that says `found`, a next step, no output, no trace."""
    capsys.readouterr()
    before = contents(Path.cwd())
    assert run(words) == code
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "  next: " in err, err
    for text in found:
        assert text in err, f"{text!r} is not in:\n{err}"
    assert "Traceback" not in err
    if untouched:
        assert contents(Path.cwd()) == before


def test_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("distill", "info", "verify"):
        refused([name], 3, capsys, "kdcache-store", "dump-teacher")
    refused(["distill", "--store", "absent.zarr"], 3, capsys, "absent.zarr")
    refused(["info", "absent.zarr"], 3, capsys, "absent.zarr")


def test_a_folder_that_is_no_store(world: World, capsys: Captured) -> None:
    Path("other").mkdir()
    Path("other/notes.txt").write_text("mine")
    for name in (["info", "other"], ["verify", "other"], ["distill", "--store", "other"]):
        refused(name, 3, capsys, "other")


def test_unfinished_store(world: World, capsys: Captured) -> None:
    assert run(world.dump("stopped", out="half.zarr")) == 130
    err = capsys.readouterr().err
    assert "interrupted" in err
    assert "kdcache dump-teacher" in err
    refused(world.distill(store="half.zarr"), 3, capsys, "half.zarr")
    assert run(["verify", "half.zarr"]) == 3
    assert "not finished" in capsys.readouterr().out
    assert run(["info", "half.zarr"]) == 0
    assert "not finished" in capsys.readouterr().out


def test_an_interrupted_dump_continues_and_equals_a_straight_one(
    world: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(world.dump("stopped", out="half.zarr")) == 130
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    capsys.readouterr()
    assert run(world.dump("stopped", out="half.zarr")) == 0
    assert "continuing" in capsys.readouterr().err
    assert run([*world.dump("stopped", out="straight.zarr"), "-q"]) == 0
    assert run(["verify", "--deep", "half.zarr"]) == 0
    digests = []
    for store in ("half.zarr", "straight.zarr"):
        capsys.readouterr()
        assert run(["verify", store]) == 0
        digests.append(capsys.readouterr().out.split("root digest ")[1])
    assert digests[0] == digests[1]


def test_other_data(world: World, capsys: Captured) -> None:
    save_data(world.data, *images_and_labels(TRAIN_ROWS, seed=9))
    refused(world.distill(), 3, capsys, "row 0")


def test_permuted_rows(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(TRAIN_ROWS, seed=0)
    images[[3, 90]], labels[[3, 90]] = images[[90, 3]], labels[[90, 3]]
    save_data(world.data, images, labels)
    refused(world.distill(), 3, capsys, "row 3")


def test_relabelled_rows(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(TRAIN_ROWS, seed=0)
    labels[50] = (labels[50] + 1) % 6
    save_data(world.data, images, labels)
    refused(world.distill(), 3, capsys, "50")


def test_a_shortened_data_set(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(TRAIN_ROWS, seed=0)
    save_data(world.data, images[:-1], labels[:-1])
    refused(world.distill(), 3, capsys, "699", "700")


def test_topk_larger_than_stored(world: World, capsys: Captured) -> None:
    refused(world.distill("--topk", "5"), 3, capsys, "5", "3")


def test_topk_larger_than_the_classes(world: World, capsys: Captured) -> None:
    refused([*world.dump(out="new.zarr"), "--topk", "7"], 2, capsys, "7", "6", "--topk all")


def test_a_teacher_with_other_classes(world: World, capsys: Captured) -> None:
    refused(world.dump("few", out="new.zarr"), 3, capsys, "5", "6")


def test_labels_out_of_range(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(TRAIN_ROWS, seed=0)
    labels[12] = 6
    save_data(world.data, images, labels)
    refused(world.dump(out="new.zarr"), 3, capsys, "12", "6")


def test_an_empty_data_set(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(0, seed=0)
    save_data(world.data, images, labels)
    refused(world.dump(out="new.zarr"), 2, capsys, "no rows")


@pytest.mark.parametrize(
    ("words", "code", "name", "near"),
    [
        (["dump-teacher", "--teacher", "resnet8x5", "--init-seed", "0"], 2, "resnet8x5", "resnet8x4"),
        (["dump-teacher", "--dataset", "digit-pair"], 3, "digit-pair", "digit-pairs"),
        (["train-teacher", "--model", "resnt56"], 2, "resnt56", "resnet56"),
        (["train-teacher", "--optimizer", "sdg"], 2, "sdg", "sgd"),
        (["dump-teacher", "--split", "tranin"], 3, "tranin", "train"),
        (["distil"], 2, "distil", "distill"),
        (["methods", "kd-tokp"], 2, "kd-tokp", "kd-topk"),
        (["datasets", "cifar-100"], 3, "cifar-100", "cifar100"),
    ],
)
def test_unknown_names_show_the_nearest(
    world: World, words: list[str], code: int, name: str, near: str, capsys: Captured
) -> None:
    refused(words, code, capsys, repr(name), near)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        (["--method", "kd-tokp"], "kd-topk"),
        (["--method", "ce,kd-tokp"], "kd-topk"),
        (["--student", "mlp32"], "mlp-32"),
        (["--temperature", "0"], "0"),
        (["--temperature", "-1"], "-1"),
        (["--temperature", "nan"], "nan"),
        (["--alpha", "1.5"], "1.5"),
        (["--lr", "0"], "lr"),
        (["--set", "tail=none", "--method", "kd"], "none"),
        (["--set", "tails=ghost", "--method", "kd"], "tail"),
        (["--method", "ce,kd", "--set", "tails=ghost"], "tail"),
        (["--method", "ce,ls", "--temperature", "2"], "temperature"),
        (["--set", "tail"], "OPTION=VALUE"),
        (["--epochs", "0"], "--epochs"),
        (["--seed", "-1"], "seed"),
        (["--device", "cuda:99"], "cuda"),
        (["--topkk", "3"], "--topk"),
    ],
)
def test_settings_out_of_range_are_usage_errors(world: World, more: list[str], found: str, capsys: Captured) -> None:
    refused(world.distill(*more), 2, capsys, found)


def test_weights_that_do_not_fit(world: World, capsys: Captured) -> None:
    train = ["train-teacher", "--dataset", "npz", "--data-root", str(world.data), "--model", "mlp-32"]
    assert run([*train, "--epochs", "1", "--lr", "0.01", "--out", "teacher", "-q"]) == 0
    dump = ["dump-teacher", "--dataset", "npz", "--data-root", str(world.data), "--topk", "3", "--out", "new.zarr"]
    fitting = str(Path("teacher") / "last.safetensors")
    refused([*dump, "--teacher", "mlp-64", "--weights", fitting], 3, capsys, "last.safetensors", "(64, 64)")


def test_weights_that_are_none(world: World, capsys: Captured) -> None:
    dump = ["dump-teacher", "--dataset", "npz", "--data-root", str(world.data), "--topk", "3", "--out", "new.zarr"]
    refused([*dump, "--teacher", "mlp-32", "--weights", "absent.safetensors"], 3, capsys, "absent.safetensors")
    Path("picture.safetensors").write_bytes(b"\x89PNG not weights at all")
    refused([*dump, "--teacher", "mlp-32", "--weights", "picture.safetensors"], 3, capsys, "picture.safetensors")
    Path("hostile.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    refused([*dump, "--teacher", "mlp-32", "--weights", "hostile.pt"], 3, capsys, "hostile.pt")
    assert not Path("owned").exists()
    refused([*dump, "--teacher", "mlp-32"], 2, capsys, "weights", "train-teacher")


def test_a_teacher_that_gives_nan(world: World, capsys: Captured) -> None:
    refused(world.dump("nan", out="new.zarr"), 1, capsys, f"{MARKED_ROW}", "NaN", untouched=False)
    assert not Path("new.zarr").exists() or run(["verify", "new.zarr"]) == 3


def test_a_teacher_near_chance(world: World, capsys: Captured) -> None:
    refused(world.dump("permuted", out="new.zarr"), 1, capsys, "--allow-weak-teacher")
    assert run([*world.dump("permuted", out="new.zarr"), "--allow-weak-teacher"]) == 0


def test_a_factory_that_fails_is_the_users_error_and_not_ours(world: World, capsys: Captured) -> None:
    refused(world.dump("failing", out="new.zarr"), 2, capsys, "no weights today", "failing")
    refused(world.dump("goood", out="new.zarr"), 2, capsys, "good")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_output_path_that_is_something_else(world: World, kind: str, capsys: Captured) -> None:
    taken = Path("taken")
    if kind == "file":
        taken.write_text("mine")
    else:
        taken.mkdir()
        (taken / "notes.txt").write_text("mine")
    refused(world.dump(out="taken"), 3, capsys, "taken")
    refused(world.distill("--out", "taken"), 2, capsys, "taken")


def test_a_run_folder_in_use(world: World, capsys: Captured) -> None:
    assert run([*world.distill("--out", "mine"), "-q"]) == 0
    refused(world.distill("--out", "mine"), 2, capsys, "mine", "--resume")
    refused(world.distill("--out", "mine", "--resume", "--alpha", "0.5"), 3, capsys, "alpha")


def test_a_damaged_store(world: World, capsys: Captured) -> None:
    chunk = max(Path("store.zarr/topk_log_prob/c").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    damaged = bytearray(chunk.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    chunk.write_bytes(damaged)
    assert run(["verify", "store.zarr"]) == 4
    assert "topk_log_prob" in capsys.readouterr().out
    refused(world.distill(), 4, capsys, "topk_log_prob")
    assert run(world.dump()) == 0  # the same command again repairs it
    assert run(["verify", "store.zarr"]) == 0


def test_reports_of_nothing(world: World, capsys: Captured) -> None:
    refused(["report"], 3, capsys, "kdcache-runs")
    refused(["report", "absent"], 3, capsys, "absent")


def test_one_labels_array_too_short(world: World, capsys: Captured) -> None:
    images, labels = images_and_labels(TRAIN_ROWS, seed=0)
    save_data(world.data, images, labels[:-1])
    refused(world.dump(out="new.zarr"), 3, capsys, "699", "700")
    refused(world.distill(), 3, capsys, "699 labels", "700 rows")


def test_the_last_of_several_methods_is_checked_before_the_first_is_trained(world: World, capsys: Captured) -> None:
    refused(world.distill("--method", "ce,mlkd", "--out", "many"), 3, capsys, "mlkd", "--views 2")
    refused(world.distill("--method", "ce,rskd", "--out", "many"), 3, capsys, "rskd", "--samples")
    Path("many/kd-seed0").mkdir(parents=True)
    Path("many/kd-seed0/notes.txt").write_text("mine")
    refused(world.distill("--method", "ce,kd", "--out", "many"), 2, capsys, "many/kd-seed0")


def test_settings_given_as_options_of_a_method(world: World, capsys: Captured) -> None:
    refused(world.distill("--method", "kd", "--set", "alhpa=0.5"), 2, capsys, "alhpa", "--alpha VALUE")


def test_a_config_file_that_is_none(world: World, capsys: Captured) -> None:
    Path("options.toml").write_text("nonsense")
    refused(["--config", "options.toml", *world.distill()], 2, capsys, "options.toml", "kdcache distill --help")


def test_a_cut_manifest(world: World, capsys: Captured) -> None:
    path = Path("store.zarr/zarr.json")
    path.write_text(path.read_text()[:200])
    refused(world.distill(), 4, capsys, "store.zarr/zarr.json", "copy of the store")


def test_not_an_npz_file(world: World, capsys: Captured) -> None:
    world.data.write_bytes(b"PK\x03\x04 truncated")
    refused(world.dump(out="new.zarr"), 3, capsys, "data.npz")
    world.data.write_bytes(b"neither")
    refused(world.dump(out="new.zarr"), 3, capsys, "data.npz: expected an NPZ file, found something else")
    np.savez(world.data, train_images=np.array([{"pickled": 1}], dtype=object), train_labels=np.zeros(1, dtype=int))
    refused(world.dump(out="new.zarr"), 3, capsys, "data.npz")


def wait_for_blocks(store: Path, *, count: int) -> None:
    """Until a dump in another process has committed so many blocks; a minute at most."""
    for _ in range(600):
        with contextlib.suppress(KdcacheError):  # the store is not there yet
            if describe(store).get("progress", {"committed": 0})["committed"] >= count:
                return
        time.sleep(0.1)
    raise AssertionError(f"{store}: no {count} blocks after a minute")


def test_ctrl_c_in_a_real_process_leaves_a_store_that_continues(
    world: World, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    words = world.dump("slow", out="slow.zarr")
    # tests that run as a shell's background job are born deaf to Ctrl-C, and so are their children
    listening = "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = listening + "runpy.run_module('kdcache', run_name='__main__', alter_sys=True)"
    with subprocess.Popen(
        [sys.executable, "-c", program, *words], env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        wait_for_blocks(Path("slow.zarr"), count=1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "interrupted" in rest
    assert "kdcache dump-teacher" in rest
    assert "Traceback" not in rest
    refused(world.distill(store="slow.zarr"), 3, capsys, "unfinished", "dump-teacher", "it continues")
    monkeypatch.setenv("KDCACHE_TEST_CALM", "1")
    assert run(words) == 0
    assert "continuing" in capsys.readouterr().err
    assert run(["verify", "--deep", "slow.zarr"]) == 0
    assert run([*world.dump("slow", out="straight.zarr"), "-q"]) == 0
    assert describe(Path("slow.zarr"))["root_digest"] == describe(Path("straight.zarr"))["root_digest"]
