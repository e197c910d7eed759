"""Stage 2: the frozen backbone sees every image once, or ten crops of it, and its activations are stored."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import Config
from dist_train.data.activations import Activations, Store, load
from dist_train.data.loading.loader import eval_batches
from dist_train.data.shards.index import SUBSETS
from dist_train.data.splits import View
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar, working
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.fewshot.base_head import save_head
from dist_train.fewshot.closed_form import fit
from dist_train.files import atomic_write
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.backbone import RunBackbone, load_backbone
from dist_train.stages.features import store_features
from dist_train.training.precision import MixedPrecision


def extract(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Write the activations of base and novel (where there are novel classes), train and val, and the base classes'
    means.

    The images go by in blocks; ranks share the blocks that are not written yet, so an interrupted
    pass continues on any number of ranks, and memory holds one block. A training image that cannot
    be used is represented by the image that replaced it in training.

    Features from elsewhere are written into the same tables.

    Raises:
        Stopped: the run is to stop; the blocks that are written stay.
    """
    stage = Stage(run, "extract", context, redo)
    if stage.done:
        return stage.log_done()
    began = time.perf_counter()
    if run.features:
        images, has_head = store_features(run, run.features, context), False
    else:
        backbone = load_backbone(run.config, context.device)
        views = {f"{role}_{subset}": run.view(subset, role) for role, subset in product(run.roles, SUBSETS)}
        images, has_head = see_images(stage.folder, views, backbone, run.config, context, stop), backbone.has_head
    facts = {}
    if context.main:
        table = load(stage.folder, "base_train")
        with working("extract: class means"):
            means = table.means()
        with atomic_write(stage.folder / "means.f32.npy") as file:
            np.save(file, means)
        log.info("extract: class means of %d base classes in %s", len(means), stage.folder)
        if not has_head:
            facts["head"] = _make_head(run, table, context)
    context.barrier("extract-means")  # before the gather, which does not wait as long
    seconds = time.perf_counter() - began
    stage.finish(seconds=round(seconds, 1), images_per_s=round(sum(context.gather(images)) / seconds, 1), **facts)


def see_images(
    folder: Path, views: Mapping[str, View], backbone: RunBackbone, config: Config, context: Context, stop: StopFlag
) -> int:
    """Write a table of activations of each view to ``folder``; blocks that are written already stay.

    Args:
        views: name of the table -> its images.

    Returns:
        number of images in this rank's blocks.

    Raises:
        Stopped: the run is to stop.
    """
    images = 0
    for name, view in views.items():
        store = Store(folder, name, view, backbone.network.dim, config.extract.block)
        if context.main:
            store.create()
        title = f"{folder.name} {name.replace('_', ' ')}"
        step = title.replace(" ", "-")
        context.barrier(step)
        missing = store.missing()
        context.barrier(f"{step}-seen")
        writer = BlockWriter(store, missing[context.rank :: context.world])
        images += _write_blocks(writer, title, backbone, config, context, stop)
        context.barrier(f"{step}-written")
        if stop.agreed_now():
            raise Stopped(f"{title}: {len(store.missing())} blocks left")
    return images


def _make_head(run: Run, table: Activations, context: Context) -> dict[str, Any]:
    """Make rows of the base classes in closed form, for a backbone that has none, and return how they were chosen."""

    def watch(classes: Sequence[int]) -> Iterator[int]:
        for number in classes:
            context.report_progress(f"extract: rows in closed form, class {number} of {len(classes)}")
            yield number

    with working("extract: rows in closed form"):
        made = fit(table, context.device, watch)
    save_head(run.dir, made.rows, made.bias)
    log.info(
        "extract: the base classes have no trained rows; they are made in closed form: %s of strength %g, right "
        "for %.1f%% of held-out base images (cross-validation)", made.kind, made.strength, made.top1,
    )  # fmt: skip
    return made.facts()


def _write_blocks(
    writer: BlockWriter, title: str, backbone: RunBackbone, config: Config, context: Context, stop: StopFlag
) -> int:
    """Compute and write the blocks of a writer, until it has none left or the run is to stop.

    Returns:
        number of images in all of its blocks.
    """
    options, ids = config.extract, writer.ids()
    if not len(ids):
        return 0
    precision, leaving = MixedPrecision(options.precision, context.device), False
    view = writer.store.view
    batches = eval_batches(view, ids, config.data, options.batch, context, options.views, backbone.preprocessing)
    with progress_bar(len(ids), title, "img", context.main) as bar, torch.inference_mode(), closing(batches):
        for batch in batches:
            with precision.autocast():
                features = backbone.network.features(batch.images)
            if options.views == "ten":
                features = features.float().reshape(len(batch.ids), -1, features.shape[-1]).mean(1)
            bar.update(len(batch.ids))
            context.report_progress(f"{title}: {len(writer.pending)} blocks left")
            if writer.add(features.to(torch.float16).cpu().numpy()):
                leaving = stop.announced()
            if leaving:
                break
    assert leaving or not writer.pending, "every block is written"
    return len(ids)


class BlockWriter:
    """Gather the activations of this rank's blocks, and write each block as soon as it is complete.

    Attributes:
        store: the table.
        pending: blocks that are not written yet, and the rows of each, in order.
    """

    def __init__(self, store: Store, blocks: npt.NDArray[np.int64]) -> None:
        self.store = store
        self.pending = deque((int(block), store.places(int(block))) for block in blocks)
        self._gathered: list[npt.NDArray[np.float16]] = []

    def ids(self) -> npt.NDArray[np.int64]:
        """Return the sample ids of all pending blocks, in the order in which their activations must come."""
        places = [self.store.view.ids[rows] for _, rows in self.pending]
        return np.concatenate(places) if places else np.zeros(0, np.int64)

    def add(self, activations: npt.NDArray[np.float16]) -> bool:
        """Take the next activations, [B, C], and return whether they completed a block."""
        self._gathered.append(activations)
        count, written = sum(map(len, self._gathered)), False
        while self.pending and count >= (size := len(self.pending[0][1])):
            rows = np.concatenate(self._gathered)
            self.store.write(self.pending.popleft()[0], rows[:size])
            self._gathered, count, written = [rows[size:]], count - size, True
        return written
