"""Prove for a user's own run and data that a resumed run sees the batches that it would have seen uninterrupted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.plan import train_windows
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.errors import UserError, counted
from dist_train.runs.inputs import check_checkpoint, stage_inputs
from dist_train.runs.run import Run
from dist_train.stages.pretrain import base_order, fingerprint
from dist_train.training import checkpoint

Ints = npt.NDArray[np.int64]
Pixels = dict[int, str]  # sample id -> checksum of its pixels
_LEAD = 2  # batches that the uninterrupted stream makes before the checkpoint's step


@dataclass(frozen=True)
class Line:
    """Describe a global batch that was compared.

    Attributes:
        number: number of the global batch.
        sample, window: its first sample, and that sample's crop window ("WxH+X+Y").
        before, after: checksums of its pixels in the uninterrupted stream and in the resumed stream.
    """

    number: int
    sample: str
    window: str
    before: str
    after: str


def verify_resume(run: Run, batches: int) -> tuple[list[Line], list[str]]:
    """Compare ``batches`` global batches after the newest checkpoint of ``pretrain``, as made by a stream that started
    before the checkpoint, and by new streams that start at it, on 1, 2 and 4 ranks.

    Returns:
        The batches that were compared, and the differences in words; without a difference resuming is exact.

    Raises:
        UserError: there is no checkpoint, or it is of other inputs.
    """
    if run.config.backbone:
        raise UserError(
            f"{run.dir}: nothing was trained, as backbone names a trained network; there is no resume to prove"
        )
    order = base_order(run)  # first: it refuses a run without images
    folder = run.dir / "pretrain" / "checkpoints"
    saved = checkpoint.load_latest(folder)
    if saved is None:
        raise UserError(f"{folder}: no checkpoint yet; start the run first")
    check_checkpoint(saved, stage_inputs(run, "pretrain"), folder)
    step, size = saved.state["step"], run.config.pretrain.global_batch
    differences = []
    if "next" in saved.state and saved.state["next"] != fingerprint(run, order, step):
        differences.append(f"batch {step}: samples or windows are not those that the run recorded in its checkpoint")
    first, worlds = max(0, step - _LEAD), [w for w in (1, 2, 4) if size % w == 0]
    lines: list[Line] = []
    total = step - first + batches + batches * sum(worlds)
    with progress_bar(total, "verify-resume", "batch", show=True) as bar:
        uninterrupted = _stream(run, 1, first, step + batches, bar)[step - first :]
        for world in worlds:
            resumed = _stream(run, world, step, step + batches, bar)
            for number, (before, after) in enumerate(zip(uninterrupted, resumed, strict=True), step):
                if world == 1:
                    lines.append(_line(run, number, before, after))
                where = f"batch {number} on {counted(world, 'rank')}"
                differences += [f"{where}: {difference}" for difference in _differences(run, before, after)]
    return lines, differences


def _differences(run: Run, before: Pixels, after: Pixels) -> list[str]:
    """Return the differences of a batch in two streams, in words."""
    key = run.view("train", "base").subset.key
    changed = [sample for sample in before.keys() & after.keys() if before[sample] != after[sample]]
    return [
        *(f"sample {key(sample)} is missing" for sample in sorted(before.keys() - after.keys())),
        *(f"sample {key(sample)} is too many" for sample in sorted(after.keys() - before.keys())),
        *(f"sample {key(sample)} has other pixels" for sample in sorted(changed)),
    ]


def _stream(run: Run, world: int, start: int, stop: int, bar: tqdm[Any]) -> list[Pixels]:
    """Return sample id -> checksum of its pixels, for each global batch, from new loaders of ``world`` ranks."""
    view, config = run.view("train", "base"), run.config
    batches: list[Pixels] = [{} for _ in range(start, stop)]
    for rank in range(world):
        order = base_order(run)
        for number, batch in enumerate(
            train_batches(view, order, config.data, Context(rank, world, rank, world), range(start, stop))
        ):
            batches[number].update(
                (int(sample), hashlib.sha256(image.numpy().tobytes()).hexdigest())
                for sample, image in zip(batch.ids, batch.images.cpu(), strict=True)
            )
            bar.update()
    return batches


def _line(run: Run, number: int, before: Pixels, after: Pixels) -> Line:
    view = run.view("train", "base")
    positions, epochs = base_order(run).batch(number)
    first = view.ids[positions[:1]]
    windows = train_windows(view, first, epochs[:1], run.config.data, run.config.seed)
    (y, x), (h, w) = windows.anchor[0], windows.shape[0]
    return Line(number, view.subset.key(int(first[0])), f"{w}x{h}+{x}+{y}", _digest(before), _digest(after))


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256("".join(f"{sample}:{pixels[sample]}" for sample in sorted(pixels)).encode()).hexdigest()[:16]
