"""What a stage is made from, and whether that is what it was made from before."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config import GONE, STAGES, Config, to_dict
from dist_train.errors import UserError, command
from dist_train.runs.run import Run
from dist_train.training.checkpoint import Checkpoint

# Keys that change how fast, how often or where, but not what comes out: the same samples, the same pixels and the
# same operations on them, in the same types. At most sums are taken in another order, which moves last digits, as
# another number of ranks does. torch.compile is not among them: where it fuses operations, what stood between them is
# not rounded to bf16 any more. DeepSpeed's own options are not either: some exchange gradients in fewer bits.
_NEUTRAL = {
    "data": ("shards", "split", "threads", "prefetch", "max_bad_fraction"),  # of shards and split, a hash is an input
    "pretrain": ("checkpoint_every", "keep", "keep_every", "log_every", "strategy", "offload"),
    "extract": ("batch",),  # batch norm uses its stored statistics: an image's activation is its own
    "learn": ("log_every", "checkpoint_every", "methods", "cuda_graph"),  # each method is trained alone, from one seed
    "evaluate": ("methods", "options"),  # each row knows its own (stages/row_store.py)
}


def stage_inputs(run: Run, stage: str) -> dict[str, Any]:
    """All that decides a stage's result, itself and upstream, as flat ``key: value``."""
    plain = to_dict(run.config)
    found: dict[str, Any] = {"seed": run.config.seed, "shards": run.shards.hash[:16], "split": run.split.hash}
    if stage == "pretrain" and run.split.halves:  # both halves have the same base
        plain["data"].pop("holdout")
    for section in ("data", *STAGES[: STAGES.index(stage) + 1]):
        for key, value in plain[section].items():
            if key not in _NEUTRAL[section]:
                found[f"{section}.{key}"] = value
    return found


def check_inputs(run: Run, stage: str, remedy: str = "") -> None:
    """Compare a stage's inputs with those that it was started from; ``remedy``: what to do, if not to take another name
    or to make it again.

    Raises:
        UserError: it says what has changed, or that the record is missing or damaged.
    """
    again = remedy or f"{same_options(stage, '--redo')} makes this stage and those after it again"
    path = run.dir / stage / "inputs.json"
    if not path.is_file():
        if (path.parent / "done.json").is_file():
            raise UserError(f"{path}: missing, so what was made is not known; {again}")
        return
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: damaged; {again}") from None
    changed = _changed(before, stage_inputs(run, stage))
    if changed:
        raise UserError(f"{path.parent}: was made from other inputs ({changed}); take another --name, or: {again}")


def same_options(stage: str, *flags: str) -> str:
    """Write the command of a stage with the options that this process was started with, and further flags; where they
    are not on its command line (a rank or a job), say that they are the same."""
    name, *options = sys.argv[1:] or [""]
    if name not in ("run", *STAGES):
        return f"{command(stage, *flags)}, with the same options,"
    return command(stage, *(word for word in options if word not in flags), *flags)


def check_checkpoint(saved: Checkpoint, now: Mapping[str, Any], folder: Path) -> None:
    """Refuse a checkpoint of other data, another split or another model, wherever it was copied from.

    Raises:
        UserError: it says what differs.
    """
    changed = _changed(saved.state.get("inputs", {}), now)
    if changed:
        raise UserError(
            f"{folder}: its checkpoint is of another run ({changed}); remove it, or start again with --redo"
        )


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first keys that differ, in words. A record may be of an older version: it may lack keys, which then had
    their default, and have neutral ones."""
    default = {f"{section}.{key}": value for section, keys in to_dict(Config()).items() if isinstance(keys, dict)
               for key, value in keys.items()}  # fmt: skip
    before = {**{key: default[key] for key in now if key in default}, **before}
    differ = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key) and not _is_neutral(key)]
    return "; ".join(f"{key}: {before.get(key)!r} -> {now.get(key)!r}" for key in differ[:4])


def _is_neutral(name: str) -> bool:
    section, _, key = name.partition(".")
    return key in _NEUTRAL.get(section, ()) or name in GONE
