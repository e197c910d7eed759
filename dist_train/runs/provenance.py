"""Where a number is from: commit, versions, hashes, seeds, machine, command."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from typing import Any

from dist_train.distributed.context import Context
from dist_train.names import is_wnid
from dist_train.runs.run import Run
from dist_train.runs.software import software


def provenance(run: Run, context: Context) -> dict[str, Any]:
    """Return everything that is needed to reproduce a number: commit, versions, hashes, seeds, machine, command, and
    where a trained network is from."""
    packages = (
        "torch",
        "torchvision",
        "nvidia-dali-cuda130",
        "nvidia-dali-cuda120",
        "webdataset",
        "numpy",
        "deepspeed",
        "timm",
        "scikit-learn",
    )
    return {
        **software(packages),
        "machine": {"platform": platform.platform(), "ranks": context.world, "device": str(context.device)},
        run.samples.kind: run.samples.hash,
        **_source(run),
        "split": {"name": run.split.name, "hash": run.split.hash, "holdout": run.config.data.holdout},
        "seeds": {"seed": run.config.seed, "evaluate.seed": run.config.evaluate.seed},
        **({"backbone": backbone} if (backbone := _backbone(run)) else {}),
    }


def _source(run: Run) -> dict[str, Any]:
    """Return what else is to be known of a run's images or features."""
    if run.features:
        return {"files": {name: str(subset.path) for name, subset in run.features.subsets.items()}}
    return {"orientation": run.shards.orientation}


def _backbone(run: Run) -> dict[str, Any]:
    """Return where a run's trained network is from, and what it has seen of the run's classes; {} where the run trained
    its network from scratch, or has none yet."""
    try:
        origin = json.loads((run.dir / "pretrain" / "final" / "state.json").read_text()).get("origin")
    except (OSError, ValueError):
        return {}
    if not origin:
        return {}
    seen, complete = origin.pop("seen"), origin.pop("complete", False)
    counts = {
        f"{role}_seen": _seen_of(classes, seen, complete)
        for role, classes in (("base", run.base), ("novel", run.novel))
    }
    done = run.dir / "extract" / "done.json"
    head = json.loads(done.read_text()).get("head") if done.is_file() else None
    origin["fine_tuned"] = run.config.pretrain.init is not None
    return {**origin, **counts, **{f"head_{key}": value for key, value in (head or {}).items()}}


def _seen_of(classes: Sequence[str], seen: Sequence[str] | None, complete: bool) -> int | None:
    """Return how many of these classes are known to have been in a network's training.

    Args:
        classes: wnids, or any names: a folder "goldfish" may be ImageNet's n01443537, and no name tells.
        seen, complete: of the network's ``Origin``.

    Returns:
        The number; None where it would be 0 and a class may have been there unknown.
    """
    number = len({*(seen or ())} & {*classes})
    return number if number or (complete and all(map(is_wnid, classes))) else None
