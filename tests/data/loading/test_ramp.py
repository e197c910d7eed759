"""Progressive resizing: the side of the training crops changes between steps, in one pipeline."""

import dataclasses
import gc
import weakref
from typing import Any

import pytest

from dist_train.config import Config, DataConfig
from dist_train.data.loading import dali
from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.plan import train_side
from dist_train.data.loading.preprocessing import Buffers
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import View, make_view
from dist_train.distributed.context import Context

BOTH = ("none", "randaugment")  # on the CPU: pixels after decoding, and the whole graph


@pytest.fixture
def view(shards: ShardSet) -> View:
    return make_view(shards["train"], shards.classes, shards.classes[:6], "s")  # 120 images


def ramp(config: Config, suite: Any) -> DataConfig:
    """Return a ramp from 24 to 96 over epochs 1 to 3."""
    return dataclasses.replace(config.data, augment=suite, train_size=96, ramp_from=24, ramp_epochs=(1, 3))


def test_side_of_an_epoch() -> None:
    ffcv = DataConfig(train_size=192, ramp_from=160)
    sides = [train_side(ffcv, epoch) for epoch in (0, 65, 70, 71, 76, 87)]
    assert sides == [160, 160, 160, 192, 192, 192]  # its get_resolution
    long = DataConfig(train_size=224, ramp_from=128, ramp_epochs=(2, 8))
    assert [train_side(long, epoch) for epoch in range(10)] == [128, 128, 128, 128, 160, 192, 192, 192, 224, 224]
    odd = DataConfig(train_size=100, ramp_from=40, ramp_epochs=(0, 10))
    assert [train_side(odd, epoch) for epoch in range(11)] == [40, 40, 64, 64, 64, 64, 64, 96, 96, 96, 100]
    assert {train_side(DataConfig(), epoch) for epoch in range(90)} == {224}


@pytest.mark.parametrize("suite", BOTH)
def test_a_batch_has_the_side_of_its_first_sample_and_one_pipeline_makes_them_all(
    view: View, config: Config, monkeypatch: pytest.MonkeyPatch, suite: Any
) -> None:
    built, true = [], dali.build_pipeline

    def counted(*arguments: Any) -> Any:
        built.append(arguments)
        return true(*arguments)

    monkeypatch.setattr(dali, "build_pipeline", counted)
    order, sides = Order(len(view), 48, 0), []
    for number, batch in enumerate(train_batches(view, order, ramp(config, suite), Context(), range(0, 9))):
        side = batch.images.shape[2]
        assert batch.images.shape == (48, 3, side, side)
        assert side == (24, 24, 64, 96)[order.batch(number)[1][0]]
        sides.append(side)
    # Epochs begin within batches 2 and 7, and with batch 5: 120 images are 2.5 batches.
    assert sides == [24, 24, 24, 24, 24, 64, 64, 64, 96] and len(built) == 1


@pytest.mark.parametrize("suite", BOTH)
def test_same_pixels_on_any_number_of_ranks_and_after_a_resume_within_the_ramp(
    view: View, config: Config, suite: Any
) -> None:
    order, data = Order(len(view), 48, 0), ramp(config, suite)

    def made(world: int, start: int) -> list[list[tuple[int, bytes]]]:
        """Return all ids and pixels of each global batch. A batch that joins two epochs may hold an id twice."""
        found: list[list[tuple[int, bytes]]] = [[] for _ in range(start, 9)]
        for rank in range(world):
            batches = train_batches(view, order, data, Context(rank, world, rank, world), range(start, 9))
            for pairs, batch in zip(found, batches, strict=True):
                pairs += zip(batch.ids.tolist(), [image.numpy().tobytes() for image in batch.images], strict=True)
        return [sorted(pairs) for pairs in found]

    alone = made(1, 0)
    for world, start in ((1, 4), (1, 6), (2, 5), (4, 7)):
        assert made(world, start) == alone[start:], (world, start)


def test_memory_of_an_old_side_is_released() -> None:
    buffers = Buffers()
    first, second = buffers.lend(4, (2, 3)), buffers.lend(4, (2, 3))
    wholes = [weakref.ref(first.base), weakref.ref(second.base)]
    del first  # free when the side changes; the other is in use then
    assert buffers.lend(4, (5, 3)).shape == (4, 5, 3)
    gc.collect()
    assert wholes[0]() is None or wholes[1]() is not None
    del second
    gc.collect()
    assert [whole() for whole in wholes] == [None, None]


@pytest.mark.parametrize(
    "options, text",
    [
        ({"augment_ops": 0}, "data.augment_ops=0: must be >= 1"),
        ({"augment_magnitude": 11}, r"data.augment_magnitude=11: must be in \[0, 10\]"),
        ({"augment_std": -0.5}, "data.augment_std=-0.5: must be >= 0"),
        ({"ramp_from": 0}, "data.ramp_from=0: must be >= 1"),
        ({"ramp_from": 225}, "data.ramp_from=225: must be <= data.train_size"),
        ({"ramp_epochs": (3, 3)}, "data.ramp_epochs=.*first < last"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        DataConfig(**options)


def test_a_ramp_longer_than_the_run_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"data.ramp_epochs=.*over before pretrain.epochs"):
        dataclasses.replace(config, data=ramp(config, "none"))  # two epochs
