"""A user's own transform: named by the user, replayed from a stored seed, refused when its file changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdcache.canonical import canonical_json, from_json, to_json
from kdcache.errors import ConfigError, IncompatibleError, NotFoundError
from kdcache.specs import ViewSpec
from kdcache.views.ops import Mixup
from kdcache.views.policy import ViewPolicy

CODE = """
import torch

def make():
    def noise(image, generator):
        shift = torch.randint(-20, 21, image.shape, generator=generator)
        image += 0  # the image is the transform's own copy
        return (image.int() + shift).clamp(0, 255).to(torch.uint8)
    return noise

def number():
    return 3

def floats():
    return lambda image, generator: image.float()
"""
N = 6
IMAGE = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


def _views(policy: ViewPolicy) -> list[torch.Tensor]:
    outcomes = policy.sample(np.arange(N), 0, sizes=np.full((N, 2), 8), num_rows=N)
    return [policy.apply(IMAGE, outcome) for outcome in policy.unpack(policy.pack(outcomes))]


def test_it_replays_from_the_stored_seed_whatever_the_global_generator_does(code: Path) -> None:
    policy = ViewPolicy.named(f"{code}:make", seed=4)
    torch.manual_seed(0)
    first = _views(policy)
    torch.manual_seed(1)
    second = _views(ViewPolicy.named(f"{code}:make", seed=4))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({view.numpy().tobytes() for view in first}) == N
    assert torch.equal(IMAGE.flatten(), torch.arange(192, dtype=torch.uint8))
    assert not policy.is_batched


def test_the_manifest_holds_the_digest_and_no_path_and_runs_nothing(code: Path) -> None:
    policy = ViewPolicy.named(f"{code}:make", seed=4)
    text = canonical_json(to_json(policy.spec()))
    assert str(code.parent) not in text
    spec = from_json(ViewSpec, to_json(policy.spec()))
    with pytest.raises(IncompatibleError, match=r"mine.py:make, which was not given") as caught:
        ViewPolicy.from_spec(spec)
    assert "--augment" in caught.value.hint
    again = ViewPolicy.from_spec(spec, user=ViewPolicy.named(f"{code}:make"))
    assert all(torch.equal(a, b) for a, b in zip(_views(policy), _views(again), strict=True))


def test_a_changed_file_is_refused(code: Path) -> None:
    spec = ViewPolicy.named(f"{code}:make").spec()
    code.write_text(CODE.replace("-20, 21", "-30, 31"))
    with pytest.raises(IncompatibleError, match="expected sha256"):
        ViewPolicy.from_spec(spec, user=ViewPolicy.named(f"{code}:make"))


def test_a_toml_file_may_name_it_beside_itself_with_mixing_after_it(code: Path) -> None:
    toml = code.parent / "mine.toml"
    toml.write_text('[[ops]]\nop = "user-transform"\ncode = "mine.py:make"\n[[ops]]\nop = "mixup"\n')
    policy = ViewPolicy.named(str(toml), seed=4)
    assert policy.mix_op == Mixup()
    alone = ViewPolicy.named(f"{code}:make", seed=4)
    assert all(torch.equal(a, b) for a, b in zip(_views(policy), _views(alone), strict=True))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('op = "user-transform"\ncode = "mine.py:make"\ndigest = "00"', "alone"),
        ('op = "user-transform"\ncode = "mine.py:make"\n[[ops]]\nop = "pad-crop"', "only mixing may follow"),
        ('op = "user-transform"\ncode = "mine.py:nothing"', "no function"),
        ('op = "user-transform"\ncode = "mine.py:number"', "expected a callable"),
    ],
)
def test_wrong_declarations_are_refused(code: Path, table: str, says: str) -> None:
    toml = code.parent / "mine.toml"
    toml.write_text(f"[[ops]]\n{table}\n")
    with pytest.raises(ConfigError, match=says):
        ViewPolicy.named(str(toml))


def test_wrong_results_and_missing_files_are_refused(code: Path) -> None:
    with pytest.raises(ConfigError, match="must return a uint8"):
        _views(ViewPolicy.named(f"{code}:floats"))
    with pytest.raises(NotFoundError, match="no such file"):
        ViewPolicy.named(f"{code.parent / 'other.py'}:make")
