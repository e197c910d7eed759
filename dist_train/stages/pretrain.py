"""Chapter 1: the backbone learns the base classes."""

from __future__ import annotations

import time
from typing import Any

import torch

from dist_train.context import Context
from dist_train.data.loader import eval_batches, train_batches
from dist_train.data.order import Order
from dist_train.data.pool import progress_bar
from dist_train.engine import checkpoint
from dist_train.engine.loop import evaluate, train
from dist_train.engine.metrics import Metrics
from dist_train.engine.optim import sgd
from dist_train.engine.precision import MixedPrecision, assert_float32
from dist_train.engine.strategy import Strategy
from dist_train.models.backbone import Backbone
from dist_train.stages.common import Run, Stage, log


def run(run: Run, context: Context, redo: bool = False) -> None:
    """Train ``pretrain.model`` on the base classes; leaves ``pretrain/final`` and ``pretrain/best``.

    The final weights, not the best, go on to ``extract``: choosing by validation accuracy would be
    choosing on the images that are reported.
    """
    stage = Stage(run, "pretrain", context, redo)
    if stage.done:
        return
    config, data, seed = run.config.pretrain, run.config.data, run.config.seed
    base, val = run.view("train", "base"), run.view("val", "base")
    order = Order(len(base), config.global_batch, seed)
    total, warmup = order.steps(config.epochs), round(config.warmup_epochs * len(base) / config.global_batch)

    torch.manual_seed(seed)
    model = Backbone(config.model, len(base.classes), config.small_stem).to(context.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    assert_float32(model)
    optimizer = sgd(model, config.momentum, config.weight_decay)
    precision = MixedPrecision(config.precision, context.device)

    folder = stage.folder / "checkpoints"
    saved = checkpoint.load_latest(folder, context.device)
    start, best, seconds = 0, -1.0, 0.0
    if saved:
        model.load_state_dict(saved.tensors["model"])
        optimizer.load_state_dict(saved.tensors["optimizer"])
        precision.scaler.load_state_dict(saved.tensors["scaler"])
        start, best, seconds = saved.state["step"], saved.state["best"], saved.state["seconds"]
    strategy = Strategy(model, context)

    metrics = Metrics(stage.folder, start) if context.main else None
    if context.main:
        log.info(
            "pretrain: %s on %d images of %d classes, %d steps of %d images%s",
            config.model, len(base), len(base.classes), total, config.global_batch,
            f", continued at step {start}" if start else "",
        )  # fmt: skip
    bar = progress_bar(total * config.global_batch, "pretrain", "img", context.main, start * config.global_batch)
    began = time.perf_counter() - seconds

    def on_log(step: int, values: dict[str, float]) -> None:
        if metrics:
            metrics.write(step, values)
            bar.set_postfix(loss=f"{values['train/loss']:.3f}", top1=f"{values['train/top1(%)']:.1f}%")
            bar.update(step * config.global_batch - bar.n)

    def on_step(step: int) -> None:
        nonlocal best
        last = step == total
        improved = False
        if order.ends_epoch(step - 1) or last:
            ids = val.ids[context.rank :: context.world]
            batch = max(1, config.global_batch // context.world // config.accumulate)
            scores = evaluate(strategy, precision, eval_batches(val, ids, data, batch, context), len(val))
            improved = scores["eval/top1(%)"] > best
            best = max(best, scores["eval/top1(%)"])
            if metrics:
                metrics.write(step, scores)
                bar.write(f"step {step}/{total}: base top-1 {scores['eval/top1(%)']:.2f}%")
        if step % config.checkpoint_every == 0 or last or improved:
            strategy.sync_buffers()
            if context.main:
                tensors = {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": precision.scaler.state_dict(),
                }
                state = {"step": step, "best": best, "seconds": time.perf_counter() - began}
                if step % config.checkpoint_every == 0 or last:
                    checkpoint.save(checkpoint.step_path(folder, step), tensors, state)
                    checkpoint.retain(folder, config.keep)
                if improved:
                    checkpoint.save(stage.folder / "best", {"model": tensors["model"]}, state)

    batches = (
        train_batches(base, order, data, seed, context, start, total, config.accumulate) if start < total else iter(())
    )
    train(strategy, optimizer, precision, batches, config, start, total, warmup, on_log, on_step)
    bar.close()
    if context.main:
        assert metrics is not None
        metrics.close()
        facts: dict[str, Any] = {"model": config.model, "small_stem": config.small_stem, "classes": list(base.classes)}
        checkpoint.save(stage.folder / "final", {"model": model.state_dict()}, {**facts, "step": total, "best": best})
    stage.finish(step=total, best_top1=best, seconds=round(time.perf_counter() - began, 1))


def load_backbone(run: Run, device: torch.device) -> Backbone:
    """The finished backbone, frozen, in evaluation mode."""
    saved = checkpoint.load(run.dir / "pretrain" / "final", device)
    model = Backbone(saved.state["model"], len(saved.state["classes"]), saved.state["small_stem"])
    model.load_state_dict(saved.tensors["model"])
    memory = torch.channels_last if run.config.pretrain.channels_last else torch.contiguous_format
    return model.to(device, memory_format=memory).eval().requires_grad_(False)  # type: ignore[call-overload]
