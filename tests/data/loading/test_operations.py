"""RandAugment and TrivialAugment: the operations that are drawn, and their effect in DALI."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import stats

from dist_train.config import Config, DataConfig
from dist_train.config.backbone import MEAN, STD
from dist_train.data.loading import augment
from dist_train.data.loading.augment import BINS, OPERATIONS, operations, uniforms
from dist_train.data.loading.loader import eval_batches, train_batches
from dist_train.data.loading.order import Order
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context

BOTH = ("randaugment", "trivialaugment")
STRONGEST = BINS - 1


@pytest.fixture
def view(shards: ShardSet) -> View:
    return make_view(shards["train"], shards.classes, shards.classes[:6], "s")


@pytest.fixture
def augmented(view: View, config: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[..., npt.NDArray[np.uint8]]:
    """``augmented((name, bin, sign), ..., augment="randaugment")``: a batch, uint8 [24, 56, 56, 3], in which
    every image gets these operations; without a suite ``preprocessing`` makes it."""

    def make(*chosen: tuple[str, int, int], context: Context | None = None, **options: Any) -> npt.NDArray[np.uint8]:
        rows = [(OPERATIONS.index(name), level, sign) for name, level, sign in chosen]
        data = dataclasses.replace(config.data, train_size=56, augment_ops=max(1, len(chosen)), **options)

        def fixed(data: DataConfig, seed: int, epochs: Any, ids: Any) -> npt.NDArray[np.int32]:
            return np.tile(np.array(rows, np.int32).reshape(1, -1, 3), (len(ids), 1, 1))

        monkeypatch.setattr(augment, "operations", fixed)
        (batch,) = train_batches(view, Order(len(view), 24, 0), data, context or Context(), range(0, 1))
        mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        return (batch.images.cpu() * std + mean).round().byte().permute(0, 2, 3, 1).numpy()

    return make


def drawn(data: DataConfig, n: int, epoch: int = 0) -> npt.NDArray[np.int32]:
    return operations(data, 0, np.full(n, epoch), np.arange(n))


@pytest.mark.parametrize("suite", BOTH)
def test_same_pixels_on_any_number_of_ranks_and_after_a_resume(
    view: View, config: Config, global_batches: Callable[..., list[dict[int, bytes]]], suite: Any
) -> None:
    order, data = Order(len(view), 24, 0), dataclasses.replace(config.data, augment=suite)
    alone = global_batches(view, order, data, 1, 0, 7)
    assert alone != global_batches(view, order, config.data, 1, 0, 7)
    assert global_batches(view, order, data, 2, 0, 7) == alone
    for start in (1, 5):
        assert global_batches(view, order, data, 1, start, 7) == alone[start:]
    assert global_batches(view, order, data, 4, 3, 7, accumulate=2) == alone[3:]


def test_draws_are_a_pure_function_of_seed_epoch_and_id() -> None:
    data, ids, epochs = DataConfig(augment="randaugment"), np.array([5, 9, 7]), np.array([0, 3, 1])
    whole = operations(data, 7, epochs, ids)
    assert np.array_equal(whole[1:2], operations(data, 7, epochs[1:2], ids[1:2]))
    first, other, seed = drawn(data, 500), drawn(data, 500, epoch=1), operations(data, 1, *np.zeros((2, 500), int))
    assert np.mean((first == other).all((1, 2))) < 0.02 and np.mean((first == seed).all((1, 2))) < 0.02
    assert drawn(DataConfig(), 5).shape == (5, 0, 3)


def test_operations_are_uniform_and_magnitudes_are_as_documented() -> None:
    n = 20_000
    trivial = drawn(DataConfig(augment="trivialaugment"), n)
    rand = drawn(DataConfig(augment="randaugment", augment_ops=3), n)
    assert trivial.shape == (n, 1, 3) and rand.shape == (n, 3, 3)
    for chosen in (*trivial.transpose(1, 0, 2), *rand.transpose(1, 0, 2)):
        assert stats.chisquare(np.bincount(chosen[:, 0], minlength=len(OPERATIONS))).pvalue > 1e-3
        assert stats.chisquare(np.bincount(chosen[:, 2], minlength=2)).pvalue > 1e-3
        assert abs(np.corrcoef(chosen.T) - np.eye(3)).max() < 0.03
    assert stats.chisquare(np.bincount(trivial[:, 0, 1], minlength=BINS)).pvalue > 1e-3
    assert abs(np.corrcoef(rand[:, :, 0].T) - np.eye(3)).max() < 0.03  # one turn knows nothing of another
    bins = rand[:, :, 1] / STRONGEST * 10  # timm's m7-mstd0.5
    assert abs(bins.mean() - 7) < 0.02 and abs(bins.std() - 0.5) < 0.03
    edges = np.arange(15.5, 27)  # bins 16 to 26, and what lies beyond
    shares = np.diff(stats.norm(21, 1.5).cdf([-np.inf, *edges, np.inf]))
    found = np.bincount(np.digitize(rand[:, 0, 1], edges), minlength=len(shares))
    assert stats.chisquare(found, shares * n).pvalue > 1e-3
    still = drawn(DataConfig(augment="randaugment", augment_std=0, augment_magnitude=10), 50)
    assert (still[:, :, 1] == STRONGEST).all()
    clipped = drawn(DataConfig(augment="randaugment", augment_std=20), n)[:, :, 1]
    assert clipped.min() == 0 and clipped.max() == STRONGEST


def test_augmentation_changes_no_window_and_no_flip(augmented: Callable[..., npt.NDArray[np.uint8]]) -> None:
    """With the identity alone, DALI's graph makes the pixels that ``preprocessing`` makes without augmentation."""
    plain, same = augmented(), augmented(("identity", 0, 0), augment="randaugment")
    assert np.abs(plain.astype(int) - same).mean() < 0.5
    n = np.arange(20_000)
    streams = np.hstack([uniforms(0, n * 0, n, 4, stream) for stream in (0, 1)])
    assert abs(np.corrcoef(streams.T) - np.eye(8)).max() < 0.03


@pytest.mark.parametrize("suite", ["randaugment", pytest.param("trivialaugment", marks=pytest.mark.long)])
def test_every_operation_has_its_own_effect(augmented: Callable[..., npt.NDArray[np.uint8]], suite: Any) -> None:
    made = {name: augmented((name, STRONGEST, 1), augment=suite) for name in OPERATIONS}
    names = [name for name in OPERATIONS if name != "identity"]
    for number, name in enumerate(names):
        for other in ("identity", *names[:number]):
            assert np.abs(made[name].astype(int) - made[other]).mean() > 0.2, (name, other)


def test_effects_follow_the_magnitude(augmented: Callable[..., npt.NDArray[np.uint8]]) -> None:
    rand = {"augment": "randaugment"}
    pixels = augmented(("identity", 0, 0), **rand)
    assert np.array_equal(augmented(("solarize", STRONGEST, 0), **rand), 255 - pixels)  # threshold 0
    half = augmented(("solarize", 15, 0), **rand)
    assert np.array_equal(half, np.where(pixels < 128, pixels, 255 - pixels))
    assert np.array_equal(augmented(("posterize", STRONGEST, 1), **rand), pixels & 0xF0)
    assert np.array_equal(augmented(("posterize", STRONGEST, 0), augment="trivialaugment"), pixels & 0xC0)
    for sign, factor in ((0, 1.6), (1, 0.4)):  # bin 20 of 30: 2/3 of 0.9
        wanted = np.clip(pixels * factor, 0, 255)
        assert np.abs(augmented(("brightness", 20, sign), **rand) - wanted).max() <= 1


def test_images_are_moved_by_the_magnitude(augmented: Callable[..., npt.NDArray[np.uint8]]) -> None:
    pixels = augmented(("identity", 0, 0), augment="randaugment")
    moved = augmented(("translate_x", STRONGEST, 0), augment="trivialaugment")  # 32 of 224 is 8 of 56
    assert np.array_equal(moved[:, :, 8:], pixels[:, :, :-8]) and (moved[:, :, :8] == 128).all()
    moved = augmented(("translate_y", STRONGEST, 1), augment="trivialaugment")
    assert np.array_equal(moved[:, :-8], pixels[:, 8:]) and (moved[:, -8:] == 128).all()
    for name, sign, angle in (("randaugment", 0, 20), ("randaugment", 1, -20), ("trivialaugment", 0, 90)):
        turned = augmented(("rotate", 20, sign), augment=name)
        wanted = [
            Image.fromarray(image).rotate(angle, Image.Resampling.BILINEAR, fillcolor=(128,) * 3) for image in pixels
        ]
        apart = np.abs(turned.astype(int) - np.stack([np.asarray(image) for image in wanted]))
        assert apart[:, 8:-8, 8:-8].mean() < 2, name


def test_operations_are_applied_in_order(augmented: Callable[..., npt.NDArray[np.uint8]]) -> None:
    pixels = augmented(("identity", 0, 0), augment="randaugment")
    first, then = ("solarize", STRONGEST, 0), ("posterize", STRONGEST, 0)
    assert np.array_equal(augmented(first, then, augment="randaugment"), (255 - pixels) & 0xF0)
    assert np.array_equal(augmented(then, first, augment="randaugment"), 255 - (pixels & 0xF0))


def test_evaluation_is_never_augmented(view: View, config: Config) -> None:
    on, off = (
        torch.cat([batch.images for batch in eval_batches(view, view.ids, data, 16, Context())])
        for data in (dataclasses.replace(config.data, augment="randaugment"), config.data)
    )
    assert torch.equal(on, off)


def test_a_batch_that_is_held_stays_as_it_is(view: View, config: Config) -> None:
    order, data = Order(len(view), 24, 0), dataclasses.replace(config.data, augment="randaugment")
    fresh = [batch.images.clone() for batch in train_batches(view, order, data, Context(), range(0, 12))]
    held = [batch.images for batch in train_batches(view, order, data, Context(), range(0, 12))]
    assert all(torch.equal(a, b) for a, b in zip(fresh, held, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_gpu_makes_the_same_pixels(augmented: Callable[..., npt.NDArray[np.uint8]], name: str) -> None:
    gpu = Context(device=torch.device("cuda", 0))
    made = [augmented((name, 20, 0), augment="randaugment", decoder=d, context=gpu) for d in ("cpu", "mixed")]
    assert np.abs(made[0].astype(int) - made[1]).mean() < 3
