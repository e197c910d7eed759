"""Chapter 2: the frozen backbone looks at every image once, or at ten crops of it."""

from __future__ import annotations

import time

import numpy as np
import torch

from dist_train.data.activations import Store, load
from dist_train.data.loading.loader import eval_batches
from dist_train.distributed.context import Context
from dist_train.distributed.pool import progress_bar
from dist_train.distributed.stopping import StopFlag, Stopped
from dist_train.files import atomic_write
from dist_train.runs.run import Run
from dist_train.runs.stage import Stage, log
from dist_train.stages.pretrain import load_backbone
from dist_train.training.precision import MixedPrecision

TABLES = [(role, subset) for role in ("base", "novel") for subset in ("train", "val")]


def extract(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Write the activations of base and novel, train and val, and the base classes' means.

    The images go by in blocks; ranks share the blocks that are not written yet, so an interrupted
    pass continues on any number of ranks, and memory holds one block. A training image that cannot
    be used is represented by the one that replaced it in training.

    Raises:
        Stopped: told to leave; the blocks that are written stay.
    """
    stage = Stage(run, "extract", context, redo)
    if stage.done:
        return stage.rest()
    config, data = run.config.extract, run.config.data
    began = time.perf_counter()
    model, _ = load_backbone(run.config, context.device)
    precision = MixedPrecision(config.precision, context.device)
    images = 0
    for role, subset in TABLES:
        view = run.view(subset, role)
        store = Store(stage.folder, f"{role}_{subset}", view, model.dim, config.block)
        if context.main:
            store.create()
        context.barrier(f"extract-{role}-{subset}")
        todo = store.missing()
        context.barrier(f"extract-{role}-{subset}-seen")
        mine = todo[context.rank :: context.world]
        places = [store.places(int(block)) for block in mine]
        ids = np.concatenate([view.ids[p] for p in places]) if places else np.zeros(0, np.int64)
        bar = progress_bar(len(ids), f"extract {role} {subset}", "img", context.main)
        rows: list[np.ndarray] = []
        pending = list(zip(mine, places, strict=True))
        leave = False
        with torch.inference_mode():
            for batch in eval_batches(view, ids, data, config.batch, context, config.views) if len(ids) else ():
                with precision.autocast():
                    features = model.features(batch.images)
                if config.views == "ten":
                    features = features.float().unflatten(0, (len(batch.ids), -1)).mean(1)
                rows.append(features.to(torch.float16).cpu().numpy())
                bar.update(len(batch.ids))
                context.report_progress(f"extract {role} {subset}: {len(pending)} blocks left")
                have = sum(map(len, rows))
                while pending and have >= (size := len(pending[0][1])):
                    table = np.concatenate(rows)
                    store.write(int(pending.pop(0)[0]), table[:size])
                    rows, have = [table[size:]], have - size
                    leave = stop.announced()
                if leave:
                    break
        assert leave or not pending, "every block is written"
        bar.close()
        images += len(ids)
        context.barrier(f"extract-{role}-{subset}-written")
        if stop.agreed_now():
            raise Stopped(f"extract {role} {subset}: {len(store.missing())} blocks left")
    if context.main:
        means = load(stage.folder, "base_train").means()
        with atomic_write(stage.folder / "means.f32.npy") as file:
            np.save(file, means)
        log.info("extract: class means of %d base classes in %s", len(means), stage.folder)
    context.barrier("extract-means")  # before the gather, which does not wait as long
    seconds = time.perf_counter() - began
    stage.finish(seconds=round(seconds, 1), images_per_s=round(sum(context.gather(images)) / seconds, 1))
