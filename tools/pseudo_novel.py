"""What the tools that choose among methods share: they score a run on its pseudo-novel classes, never on novel ones."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from dist_train.config.io import load_config
from dist_train.distributed.context import Context
from dist_train.runs.run import Run, open_run
from dist_train.stages.scoring import JointScoring


def open_joint_scoring(
    parser: argparse.ArgumentParser, folder: Path, options: argparse.Namespace, context: Context
) -> tuple[Run, JointScoring]:
    """Open a run, and the scoring of its methods, at the shots and draws of the options.

    Choices are made on pseudo-novel classes; a run with another holdout is a usage error.
    """
    config = load_config(folder)
    if config.data.holdout != "pseudo-novel":
        parser.error(f"{folder}: choices are made on pseudo-novel classes; give a run of data.holdout=pseudo-novel")
    evaluate = replace(config.evaluate, draws=options.draws, shots=options.shots)
    run = open_run(replace(config, evaluate=evaluate))
    return run, JointScoring(run, context)
