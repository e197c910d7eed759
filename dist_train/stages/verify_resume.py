"""A proof for a user's own run and data: what a resumed run will see is what it would have seen."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.plan import train_windows
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.runs.inputs import check_checkpoint, inputs
from dist_train.runs.run import Run
from dist_train.stages.pretrain import base_order, fingerprint
from dist_train.training import checkpoint

Ints = npt.NDArray[np.int64]
Pixels = dict[int, str]
_BEFORE = 2  # batches that the uninterrupted stream makes before the checkpoint's step


@dataclass(frozen=True)
class Line:
    """One global batch: its number, first sample, that sample's crop window, both streams' checksums."""

    number: int
    sample: str
    window: str
    before: str
    after: str


def verify_resume(run: Run, batches: int) -> tuple[list[Line], list[str]]:
    """Compare the ``batches`` global batches after the newest checkpoint of ``pretrain``: made by a
    stream that comes from before it, and by new streams that start there, on 1, 2 and 4 ranks.

    Returns:
        What was compared, and the differences, a line each; none: resuming is exact.

    Raises:
        UserError: no checkpoint, or it is of other inputs.
    """
    folder = run.dir / "pretrain" / "checkpoints"
    saved = checkpoint.load_latest(folder)
    if saved is None:
        raise UserError(f"{folder}: no checkpoint yet; start the run first")
    check_checkpoint(saved, inputs(run, "pretrain"), folder)
    step, size, order = saved.state["step"], run.config.pretrain.global_batch, base_order(run)
    differences = []
    if "next" in saved.state and saved.state["next"] != fingerprint(run, order, step):
        differences.append(f"batch {step}: samples or windows are not those that the run recorded in its checkpoint")
    first = max(0, step - _BEFORE)
    going = _stream(run, 1, first, step + batches)[step - first :]
    lines = []
    for world in (w for w in (1, 2, 4) if size % w == 0):
        for number, (before, after) in enumerate(
            zip(going, _stream(run, world, step, step + batches), strict=True), step
        ):
            if world == 1:
                lines.append(_line(run, number, before, after))
            where = f"batch {number} on {world} rank{'s' if world > 1 else ''}"
            view = run.view("train", "base").subset
            differences += [f"{where}: sample {view.key(i)} is missing" for i in sorted(before.keys() - after.keys())]
            differences += [f"{where}: sample {view.key(i)} is too many" for i in sorted(after.keys() - before.keys())]
            differences += [
                f"{where}: sample {view.key(i)} has other pixels"
                for i in sorted(before.keys() & after.keys())
                if before[i] != after[i]
            ]
    return lines, differences


def _stream(run: Run, world: int, start: int, stop: int) -> list[Pixels]:
    """Sample id -> checksum of its pixels, for each global batch, from ``world`` ranks' new loaders."""
    view, config = run.view("train", "base"), run.config
    found: list[Pixels] = [{} for _ in range(start, stop)]
    for rank in range(world):
        order = base_order(run)
        for number, batch in enumerate(
            train_batches(view, order, config.data, config.seed, Context(rank, world, rank, world), range(start, stop))
        ):
            found[number].update(
                (int(sample), hashlib.sha256(image.numpy().tobytes()).hexdigest())
                for sample, image in zip(batch.ids, batch.images.cpu(), strict=True)
            )
    return found


def _line(run: Run, number: int, before: Pixels, after: Pixels) -> Line:
    view = run.view("train", "base")
    positions, epochs = base_order(run).batch(number)
    first = view.ids[positions[:1]]
    windows = train_windows(view, first, epochs[:1], run.config.data, run.config.seed)
    (y, x), (h, w) = windows.anchor[0], windows.shape[0]
    return Line(number, view.subset.key(int(first[0])), f"{w}x{h}+{x}+{y}", _digest(before), _digest(after))


def _digest(pixels: Pixels) -> str:
    return hashlib.sha256("".join(f"{sample}:{pixels[sample]}" for sample in sorted(pixels)).encode()).hexdigest()[:16]
