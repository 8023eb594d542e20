"""What is found and missing under a data root, seen from names alone; and what `--verify` reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from kdcache.cli.main import run
from kdcache.datasets.availability import check_data, look_for
from kdcache.datasets.cards import card_names, load_card, open_dataset
from kdcache.datasets.identity import content_digest
from kdcache.errors import NotFoundError
from tests.integration.distill_setup import write_data

Captured = pytest.CaptureFixture[str]

FASHION = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
FILES = {
    "cifar10": [*[f"data_batch_{n}" for n in range(1, 6)], "test_batch", "batches.meta"],
    "cifar100": ["train", "test", "meta"],
    "fashion-mnist": FASHION,
    "ptb": ["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"],
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_a_data_set_counts(name: str, tmp_path: Path) -> None:
    card = load_card(name)
    assert look_for(card, tmp_path).state == "missing"
    folder = tmp_path / card.path
    folder.mkdir(parents=True)
    for file in FILES[name]:
        look = look_for(card, tmp_path)
        assert look.state == "incomplete"
        assert f"{file} is not there" in look.problems
        (folder / file).touch()
    found = look_for(card, tmp_path)
    assert (found.state, found.place, found.problems) == ("found", folder, ())


def test_gzipped_fashion_counts(tmp_path: Path) -> None:
    card = load_card("fashion-mnist")
    (tmp_path / card.path).mkdir(parents=True)
    for file in FASHION:
        (tmp_path / card.path / f"{file}.gz").touch()
    assert look_for(card, tmp_path).state == "found"


def test_class_folders_are_counted_and_no_image_is_opened(tmp_path: Path) -> None:
    card = load_card("tiny-imagenet")
    (tmp_path / card.path / "val" / "images").mkdir(parents=True)
    for number in range(200):
        (tmp_path / card.path / "train" / f"n{number:08d}").mkdir(parents=True)
    look = look_for(card, tmp_path)
    assert look.state == "incomplete"
    assert look.problems == ("val/ has 1 class folders, expected 200",)


def test_generic_cards_wait_for_a_name_and_the_sample_comes_along(tmp_path: Path) -> None:
    assert {name for name in card_names() if look_for(load_card(name), None).state == "yours"} == {
        "imagefolder",
        "npz",
        "tokens",
    }
    assert look_for(load_card("digit-pairs"), tmp_path).state == "ships"


def test_the_way_to_get_it_names_this_data_root_and_a_script_that_is_there(tmp_path: Path) -> None:
    for name in card_names():
        obtain = look_for(load_card(name), tmp_path).obtain
        assert "DATA_ROOT" not in obtain
        script = next((word for word in obtain.split() if word.endswith(".py")), None)
        if script is not None:
            assert Path(script).is_file(), obtain
            assert str(tmp_path) in obtain or name in ("imagefolder", "npz", "digit-pairs"), obtain


def test_missing_data_has_the_same_hint(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError) as caught:
        open_dataset("cifar10", split="train", root=tmp_path)
    assert caught.value.hint == look_for(load_card("cifar10"), tmp_path).obtain


def test_the_list_says_what_is_found_and_how_to_get_the_rest(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "ptb.train.txt").touch()
    assert run(["datasets", "--data-root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"data root: {tmp_path}" in out
    assert "ptb: ptb.valid.txt is not there; ptb.test.txt is not there\n  get it: fetch http" in out
    assert f"prepare_torchvision.py cifar100 --data-root {tmp_path}" in out
    assert run(["datasets", "--data-root", str(tmp_path), "--json"]) == 0
    found = {card["name"]: card["data"] for card in json.loads(capsys.readouterr().out)}
    assert set(found) == set(card_names())
    assert found["ptb"]["state"] == "incomplete"
    assert found["imagenet"]["state"] == "missing"


def test_verify_reads_everything_and_compares_it_with_the_card(tmp_path: Path, capsys: Captured) -> None:
    card_file = write_data(tmp_path, rows=40)
    digest = content_digest(open_dataset(str(card_file), split="train", root=tmp_path))
    words = ["datasets", str(card_file), "--verify", "--data-root", str(tmp_path)]
    assert run(words) == 0
    assert "the card pins nothing" in capsys.readouterr().out
    card_file.write_text(card_file.read_text().replace("[splits]", f'[digests]\ntrain = "{digest}"\n[splits]'))
    assert run(words) == 0
    assert "40 rows, as published" in capsys.readouterr().out
    arrays = dict(np.load(tmp_path / "patterns.npz"))
    arrays["train_images"][7, 0, 0, 0] ^= 1
    np.savez(tmp_path / "patterns.npz", **arrays)
    assert run([*words, "--json"]) == 1
    checks = {check["split"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert "not the published examples" in checks["train"]["problem"]
    assert not checks["test"]["problem"]


def test_verify_does_not_trust_a_remembered_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("KDCACHE_CACHE_DIR", str(tmp_path / "remembered"))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "data" / split / name / "0.bmp")
    card = tmp_path / "mine.toml"
    card.write_text(
        'name = "mine"\ntitle = "t"\nsource = "image-folder"\npath = "data"\nlicence = "l"\nobtain = "o"\n'
        '[splits]\ntrain = "train"\ntest = "test"\n'
    )
    before = check_data(load_card(str(card)), tmp_path)[0].digest
    image = tmp_path / "data" / "train" / "a" / "0.bmp"
    status, content = image.stat(), bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_digest(open_dataset(str(card), split="train", root=tmp_path)) == before, (
        "the case is not the one meant"
    )
    assert check_data(load_card(str(card)), tmp_path)[0].digest != before


def test_verify_needs_a_name_and_data(tmp_path: Path, capsys: Captured) -> None:
    assert run(["datasets", "--verify"]) == 2
    assert run(["datasets", "cifar100", "--verify", "--data-root", str(tmp_path)]) == 3
    assert "prepare_torchvision.py" in capsys.readouterr().err
