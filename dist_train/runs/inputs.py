"""The inputs of a stage: everything that decides its result, compared with what it was made from before."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from dist_train.config import GONE, STAGES, BackboneConfig, Config, to_dict
from dist_train.config.checks import typed
from dist_train.errors import UserError, command
from dist_train.runs.run import Run
from dist_train.training.checkpoint import Checkpoint

# Keys that change how fast, how often or where a stage computes, but not its result: the samples, the pixels, the
# operations on them and their types stay the same. At most the order of sums differs, which changes last digits, as
# another number of ranks does. torch.compile is not among these keys: where it fuses operations, intermediate values
# are no longer rounded to bf16. Nor are DeepSpeed's own options: some exchange gradients in fewer bits.
_NEUTRAL = {
    # Hashes of the shards and of the split are inputs.
    "data": ("shards", "split", "threads", "prefetch", "max_bad_fraction"),
    "pretrain": ("checkpoint_every", "keep", "keep_every", "log_every", "strategy", "offload"),
    # Batch norm uses its stored statistics, so that an image's activation does not depend on its batch.
    "extract": ("batch",),
    # Each network is trained alone.
    "networks": ("draws", "strategy", "checkpoint_every", "log_every"),
    # Each method is trained alone, from the same seed.
    "learn": ("log_every", "checkpoint_every", "methods", "cuda_graph"),
    # Each row keeps its own (stages/row_store.py).
    "evaluate": ("methods", "options"),
}


def stage_inputs(run: Run, stage: str) -> dict[str, Any]:
    """Return {"section.key": value} of everything that decides a stage's result, keys of earlier stages included."""
    plain = to_dict(run.config)
    inputs: dict[str, Any] = {
        "seed": run.config.seed, run.samples.kind: run.samples.hash[:16], "split": run.split.hash,
    }  # fmt: skip
    if stage == "pretrain" and run.split.halves:  # both halves have the same base classes
        plain["data"].pop("holdout")
    # Rows keep what their network was made from (stages/row_store.py).
    sections = ("data", *(name for name in STAGES[: STAGES.index(stage)] if name != "networks"), stage)
    if run.features:
        inputs |= {"features.scale": plain["features"]["scale"], "data.holdout": plain["data"].get("holdout")}
        sections = tuple(name for name in sections if name in ("learn", "evaluate"))
    for section in sections:
        for key, value in plain[section].items():
            if key not in _NEUTRAL[section]:
                inputs[f"{section}.{key}"] = value
    if inputs.get("learn.precision") == "auto":  # what it began with
        inputs["learn.precision"] = _recorded(run.dir / "learn").get("learn.precision", "auto")
    if run.config.backbone:  # nothing is trained
        inputs = {key: value for key, value in inputs.items() if not key.startswith("pretrain.")}
        inputs |= _trained_network(run, "backbone", run.config.backbone)
    elif run.config.pretrain.init:
        inputs.pop("pretrain.init")
        inputs |= _trained_network(run, "pretrain.init", run.config.pretrain.init)
    return inputs


def _trained_network(run: Run, section: str, options: BackboneConfig) -> dict[str, Any]:
    """Return what decides about a trained network: the hash of its weights, wherever they lie, and what is built.

    Once the weights are in the run, their file may be gone.

    Raises:
        UserError: the run does not know the weights yet, and they cannot be found.
    """
    from dist_train.models.backbones import weights_sha256  # not above: torchvision, which it needs, takes seconds

    try:
        sha256 = weights_sha256(options, section)
    except UserError:
        sha256 = _recorded(run.dir / "pretrain").get(f"{section}.sha256", "")
        if not sha256 or not (run.dir / "pretrain" / "done.json").is_file():
            raise
    return {f"{section}.source": options.source, f"{section}.size": options.size, f"{section}.sha256": sha256}


def _recorded(folder: Path) -> dict[str, Any]:
    """Return the inputs that a stage was made from; {} where their record is missing or damaged."""
    try:
        recorded: dict[str, Any] = json.loads((folder / "inputs.json").read_text())
    except (OSError, ValueError):
        return {}
    return recorded


def check_inputs(run: Run, stage: str, remedy: str = "") -> None:
    """Compare a stage's inputs with those that it was started from.

    Args:
        remedy: what the error tells the user to do, in place of making the stage again.

    Raises:
        UserError: inputs changed, or their record is missing or damaged.
    """
    again = remedy or f"{same_options(stage, '--redo')} makes this stage and those after it again"
    path = run.dir / stage / "inputs.json"
    if not path.is_file():
        if (path.parent / "done.json").is_file():
            raise UserError(f"{path}: missing, so that the inputs of this stage are unknown; {again}")
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: damaged; {again}") from None
    changed = _changed(before, stage_inputs(run, stage))
    if changed:
        raise UserError(f"{path.parent}: was made from other inputs ({changed}); take another --name, or: {again}")


def same_options(stage: str, *flags: str) -> str:
    """Return the command of a stage with the options that this process was started with, and further flags; without
    ``--share``, by which ``evaluate`` finds a share of the draws alone.

    Where the options are not on this process's command line (a rank or a job), it says "with the same options".
    """
    name, *options = sys.argv[1:] or [""]
    if name not in ("run", *STAGES):
        return f"{command(stage, *flags)}, with the same options,"
    words = (word for before, word in pairwise(["", *options]) if "--share" not in (before, word, word.split("=")[0]))
    return command(stage, *(word for word in words if word not in flags), *flags)


def check_checkpoint(saved: Checkpoint, now: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of other data, another split or another model, which may have been copied here.

    Raises:
        UserError: its inputs differ from ``now``.
    """
    changed = _changed(saved.state.get("inputs", {}), now)
    if changed:
        raise UserError(
            f"{folder}: its checkpoint is from another run ({changed}); remove it, or start again with --redo"
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first four keys that differ, with both values, as text.

    A record may be of an older version: a key that it lacks had its default, and keys that it has may be neutral now.
    """
    default = {f"{section}.{key}": value for section, keys in to_dict(Config()).items() if isinstance(keys, dict)
               for key, value in keys.items()}  # fmt: skip
    before = {**{key: default[key] for key in now if key in default}, **before}
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and not _is_neutral(key)]
    return "; ".join(f"{key}: {typed(before.get(key))} -> {typed(now.get(key))}" for key in changed[:4])


def _is_neutral(name: str) -> bool:
    section, _, key = name.partition(".")
    return key in _NEUTRAL.get(section, ()) or name in GONE
