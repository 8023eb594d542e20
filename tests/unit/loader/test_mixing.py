"""Mixed inputs: each row with its partner in its own view, whoever reads them and in whatever batches."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms.v2 import functional as image_functional

from kdcache.datasets.files import FileSource, open_image_folder
from kdcache.datasets.identity import row_digests
from kdcache.datasets.source import DataSource
from kdcache.errors import CorruptStoreError, IncompatibleError
from kdcache.loader import InputReader, epoch_batches
from kdcache.loader.inputs import example_tensor
from kdcache.loader.mixing import label_mix, stored_label_mix
from kdcache.models.preprocess import Preprocessing
from kdcache.specs import PreprocessingSpec
from kdcache.views.mixing import Mix, drawn_mixing, mix_batch, mixing_of
from kdcache.views.ops import Cutmix, HorizontalFlip, MixOp, Mixup, MixupOrCutmix, PadCrop
from kdcache.views.policy import ViewPolicy
from tests.small_store import small_source

PLAIN = Preprocessing(PreprocessingSpec(mean=(0.5,), std=(0.25,)))
SIZED = Preprocessing(PreprocessingSpec(resize=8, crop=8, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))
N = 24
ALL = np.arange(N, dtype=np.int64)


def policy_of(mix: MixOp, seed: int = 3) -> ViewPolicy:
    return ViewPolicy(name="mixed", ops=(PadCrop(padding=1), HorizontalFlip(), mix), seed=seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for number in range(N):
        (folder / f"class-{number % 3}").mkdir(exist_ok=True)
        shape = (10 + number % 5, 12, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(
            folder / f"class-{number % 3}/{number:02}.png"
        )
    return open_image_folder(folder, name="files", split="train")


def by_hand(source: DataSource, policy: ViewPolicy, preprocessing: Preprocessing, row: int, view: int) -> torch.Tensor:
    """One mixed input from the parts: two views of the same number, each through the model's preprocessing."""

    def own(of: int) -> torch.Tensor:
        image = example_tensor(source, of)
        (outcome,) = policy.sample(np.array([of]), view, sizes=np.array([image.shape[-2:]]), num_rows=len(source))
        seen = policy.apply(image, outcome)
        if policy.squashes:
            seen = image_functional.resize(seen, [8, 8], antialias=True)
        else:
            seen = preprocessing.per_example(seen)
        return preprocessing.batch(seen[None])

    image = example_tensor(source, row)
    outcomes = policy.sample(np.array([row]), view, sizes=np.array([image.shape[-2:]]), num_rows=len(source))
    mix = mixing_of(policy, outcomes)
    assert mix is not None
    return mix_batch(own(row), own(int(mix.partner[0])), mix)[0]


def read(reader: InputReader, batches: list[NDArray[np.int64]], view: int = 0) -> dict[int, torch.Tensor]:
    return {int(row): inputs[i] for inputs, rows in reader.batches(batches, view=view) for i, row in enumerate(rows)}


@pytest.mark.parametrize("mix", [Mixup(), Cutmix(), MixupOrCutmix(probability=0.7)], ids=lambda mix: mix.NAME)
def test_arrays_are_mixed_bit_for_bit_as_by_hand(mix: MixOp) -> None:
    source, policy = small_source(N), policy_of(mix)
    reader = InputReader(source, PLAIN, policy)
    assert reader.in_memory
    for view in (0, 5):
        for row, found in read(reader, [ALL], view).items():
            assert torch.equal(found, by_hand(source, policy, PLAIN, row, view)), row


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("preset", ["patient", "mixed"])
def test_files_are_mixed_bit_for_bit_as_by_hand(files: FileSource, preset: str, workers: int) -> None:
    policy = ViewPolicy.from_preset("patient", seed=4) if preset == "patient" else policy_of(MixupOrCutmix())
    batches = [ALL[:7], ALL[7:8], ALL[8:]]
    found = read(InputReader(files, SIZED, policy, workers=workers), batches, view=2)
    for row in range(N):
        assert torch.equal(found[row], by_hand(files, policy, SIZED, row, 2)), row


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 12, 24])
def test_pixels_do_not_depend_on_batches_order_or_processes(batch_size: int, world_size: int) -> None:
    source, policy = small_source(N), policy_of(MixupOrCutmix())
    wanted = read(InputReader(source, PLAIN, policy), [ALL])
    found: dict[int, torch.Tensor] = {}
    for rank in range(world_size):
        batches = epoch_batches(N, batch_size, seed=1, epoch=2, world_size=world_size, rank=rank)
        found |= read(InputReader(source, PLAIN, policy), batches)
    assert sorted(found) == list(range(N))
    assert all(torch.equal(found[row], wanted[row]) for row in range(N))


@pytest.mark.parametrize("kind", ["array", "files"])
def test_recorded_partners_are_replayed_not_drawn_again(files: FileSource, kind: str) -> None:
    source, preprocessing = (small_source(N), PLAIN) if kind == "array" else (files, SIZED)
    drawn = InputReader(source, preprocessing, policy_of(MixupOrCutmix(), seed=1))
    recorded, seen = {}, {}
    for inputs, rows in drawn.batches([ALL[:9], ALL[9:]], view=4):
        recorded.update(zip(rows.tolist(), drawn.view_columns(rows, 4)["view_params"], strict=True))
        seen.update({int(row): inputs[i] for i, row in enumerate(rows)})
    replayed = InputReader(
        source,
        preprocessing,
        policy_of(MixupOrCutmix(), seed=2),  # stands for a later version that would draw differently
        stored_params=lambda rows, view: np.stack([recorded[int(row)] for row in rows]),
    )
    found = read(replayed, [ALL[5:], ALL[:5]], view=4)
    assert all(torch.equal(found[row], seen[row]) for row in range(N))


def test_a_file_is_read_once_a_batch_however_often_it_is_a_partner(files: FileSource) -> None:
    counted: Counter[int] = Counter()

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(files, name)

        def __len__(self) -> int:
            return len(files)

        def example(self, row: int) -> NDArray[np.generic]:
            counted[row] += 1
            return files.example(row)

    policy, rows = policy_of(Mixup()), ALL[:12]
    mix = drawn_mixing(policy, rows, 0, num_rows=N)
    assert mix is not None
    list(InputReader(Counting(), SIZED, policy).batches([rows]))  # type: ignore[arg-type]
    assert counted == Counter(set(rows.tolist()) | set(mix.partner.tolist()))


def test_mixing_alone_is_what_the_whole_outcome_says() -> None:
    policy = ViewPolicy.from_preset("patient", seed=9)
    sizes = np.stack([40 + ALL, 60 - ALL], axis=1)
    whole = mixing_of(policy, policy.sample(ALL, 3, sizes=sizes, num_rows=N))
    alone = drawn_mixing(policy, ALL, 3, num_rows=N)
    assert whole is not None
    assert alone is not None
    np.testing.assert_array_equal(whole.partner, alone.partner)
    np.testing.assert_array_equal(whole.weight, alone.weight)
    assert drawn_mixing(ViewPolicy.from_preset("cifar"), ALL, 0, num_rows=N) is None


@pytest.mark.parametrize("kind", ["array", "files"])
def test_a_partner_that_is_another_example_is_named(files: FileSource, kind: str) -> None:
    source, preprocessing = (small_source(N), PLAIN) if kind == "array" else (files, SIZED)
    digests, policy = row_digests(source, range(N)), policy_of(Mixup())
    row = ALL[:1]
    mix = drawn_mixing(policy, row, 0, num_rows=N)
    assert mix is not None
    partner = int(mix.partner[0])
    digests[partner] ^= 1
    with pytest.raises(IncompatibleError, match=f"row {partner} "):
        list(InputReader(source, preprocessing, policy).batches([row], digests=digests))


def test_labels_of_partners_are_those_of_the_partner_rows() -> None:
    source, policy = small_source(N), policy_of(MixupOrCutmix())
    outcomes = policy.sample(ALL, 1, sizes=np.full((N, 2), 6), num_rows=N)
    mix = mixing_of(policy, outcomes)
    assert mix is not None
    found = label_mix(mix, source.labels)
    assert found.partner_label.tolist() == source.labels[mix.partner].tolist()
    assert found.partner_log_prob is None
    stored = stored_label_mix(policy.spec(), policy.pack(outcomes), source.labels, np.zeros(N, dtype=np.float16))
    assert torch.equal(stored.partner_label, found.partner_label)
    assert torch.equal(stored.weight, found.weight)
    assert stored.partner_log_prob is not None


def test_a_partner_that_is_no_row_is_refused() -> None:
    policy = policy_of(Mixup())
    packed = policy.pack(policy.sample(ALL, 1, sizes=np.full((N, 2), 6), num_rows=N))
    with pytest.raises(CorruptStoreError, match="partner row"):
        stored_label_mix(policy.spec(), packed, np.zeros(5, dtype=np.int64), None)
    reader = InputReader(small_source(5), PLAIN, policy, stored_params=lambda rows, view: packed[rows])
    with pytest.raises(CorruptStoreError, match="partner row"):
        list(reader.batches([np.arange(5)]))


def test_boxes_on_the_device_are_the_boxes_of_the_slices() -> None:
    """The mask of all rows at once pastes the pixels that a slice of each row would."""
    generator = np.random.default_rng(0)
    corners = np.sort(generator.integers(0, 256, (50, 2, 2)), axis=2)
    box = np.stack([corners[:, 0, 0], corners[:, 1, 0], corners[:, 0, 1], corners[:, 1, 1]], axis=1).astype(np.uint8)
    mix = Mix(partner=np.arange(50), weight=np.full(50, 0.25, dtype=np.float32), box=box)
    own, other = torch.zeros(50, 1, 33, 17), torch.ones(50, 1, 33, 17)
    found = mix_batch(own, other, mix)
    for row, (top, left, bottom, right) in enumerate(box.astype(int)):
        wanted = torch.full((1, 33, 17), 0.75 if top >= bottom else 0.0)
        if top < bottom:
            edge = [
                (2 * value * side + 255) // 510 for value, side in ((top, 33), (bottom, 33), (left, 17), (right, 17))
            ]
            wanted[:, edge[0] : edge[1], edge[2] : edge[3]] = 1
        assert torch.equal(found[row], wanted)
