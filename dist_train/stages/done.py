"""Whether a stage has made all that its configuration asks for."""

from __future__ import annotations

from pathlib import Path

from dist_train.config import Config, EvaluateConfig
from dist_train.runs.stage import read_done
from dist_train.stages.network_store import all_trained
from dist_train.stages.row_store import RowStore

EVALUATION_FILES = ("results.json", "table.md", "report.html", "per_class.csv")
"""What an evaluation makes from its rows; without joint scoring only the first two."""


def is_done(run_dir: Path, stage: str, config: Config) -> bool:
    """Return whether a stage has made all that is asked for; its inputs are not compared (``check_inputs`` does)."""
    folder = run_dir / stage
    if stage == "networks" and not config.networks_to_train:
        return True
    if not (folder / "done.json").is_file():
        return False
    if stage == "networks":
        return all_trained(config)
    if stage == "learn":
        return all((folder / name / "final").is_dir() for name in config.learn.methods)
    if stage == "evaluate":
        store = RowStore(folder, config)
        return is_reported(folder, config.evaluate) and all(store.read(name) for name in config.evaluate.methods)
    return True


def is_reported(folder: Path, config: EvaluateConfig) -> bool:
    """Return whether an evaluation is finished for these methods, and all files made from its rows are there."""
    files = EVALUATION_FILES if config.protocol == "joint" else EVALUATION_FILES[:2]
    return read_done(folder).get("methods") == config.methods and all((folder / name).is_file() for name in files)
