"""Train the whole network for the rows of the table that need it (paper, Table 1): the triplet network, and the
fine-tuned network of each draw and number of shots.

They start from the run's backbone. What the frozen backbone's activations are for other rows, their own activations are
for these (stages/network_scoring.py).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_train.config import NETWORK_OF, digest
from dist_train.data.activations import load
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.fewshot.base_head import write_head
from dist_train.files import write_text
from dist_train.models.backbones import Backbone
from dist_train.runs.inputs import check_checkpoint
from dist_train.runs.run import Run, check_networks
from dist_train.runs.stage import Stage, log, read_done
from dist_train.stages.backbone import RunBackbone
from dist_train.stages.done import is_done
from dist_train.stages.extract import see_images
from dist_train.stages.network_store import DONE, finetuned_folder, network_folders, triplet_folder
from dist_train.stages.network_training import FinetuneTraining, NetworkTraining, TripletTraining
from dist_train.training import checkpoint
from dist_train.training.loop import TrainingLoop
from dist_train.training.precision import tuned_convolutions


def networks(run: Run, context: Context, stop: StopFlag, redo: bool = False) -> None:
    """Train the networks that rows of ``evaluate.methods`` are made from, and store the activations that these rows
    need.

    A network that is done stays, so that further draws or numbers of shots train only what is missing.

    Raises:
        Stopped: the ranks agreed to stop, and everything is saved.
        UserError: no row needs a network, or keys do not fit ``context.world`` ranks.
    """
    config = run.config
    if not config.networks_to_train:
        raise UserError(
            "evaluate.methods: names no row for which a network is trained; add some of " + ", ".join(NETWORK_OF)
        )
    check_networks(config, context.world)
    stage = Stage(run, "networks", context, redo)
    if context.gather(is_done(run.dir, "networks", config))[0]:
        return stage.log_done()
    stage.reopen()
    if "triplet_network" in config.networks_to_train:
        _train_triplet(stage, stop)
    if "finetune_network" in config.networks_to_train:
        for draw in range(config.networks.draws):
            for shots in config.evaluate.shots:
                _finetune(stage, draw, shots, stop)
    folders = network_folders(config, config.networks_to_train)
    stage.finish(networks=len(folders), seconds=round(sum(read_done(folder)["seconds"] for folder in folders), 1))


def _train_triplet(stage: Stage, stop: StopFlag) -> None:
    """Train the triplet network, and keep it with its activations of all images."""
    run, context, folder = stage.run, stage.context, triplet_folder(stage.run.config)
    if _is_made(folder, context):
        return
    task = TripletTraining(run, context)
    network, seconds = _train(task, folder, stage, stop)
    network.set_head(0)
    if context.main:
        final = {"architecture": network.architecture, "step": task.schedule.steps}
        checkpoint.save(folder / "final", {"model": network.state_dict()}, final)
    views = {f"{role}_{subset}": run.view(subset, role) for role in run.roles for subset in ("train", "val")}
    _finish(folder, stage, _see(folder, views, replace(task.backbone, network=network), stage, stop) + seconds, task)


def _finetune(stage: Stage, draw: int, shots: int, stop: StopFlag) -> None:
    """Fine-tune the backbone on base images and the supports of a draw, and keep the activations of validation images
    and the classifier: its scores, but not the network."""
    run, context, folder = stage.run, stage.context, finetuned_folder(stage.run.config, draw, shots)
    if _is_made(folder, context):
        return
    task = FinetuneTraining(run, context, load(run.dir / "extract", "novel_train"), draw, shots)
    network, seconds = _train(task, folder, stage, stop)
    views = {f"{role}_val": run.view("val", role) for role in run.roles}
    seconds += _see(folder, views, replace(task.backbone, network=network), stage, stop)
    if context.main:
        write_head(folder / "head.npz", network.head.weight.detach(), network.head.bias.detach())
    _finish(folder, stage, seconds, task)


def _is_made(folder: Path, context: Context) -> bool:
    made: bool = context.gather((folder / DONE).is_file())[0]
    return made


def _train(task: NetworkTraining, folder: Path, stage: Stage, stop: StopFlag) -> tuple[Backbone, float]:
    """Train a network, continuing from its newest checkpoint, and return it in evaluation mode, and the seconds of all
    starts."""
    context, checkpoints = stage.context, folder / "checkpoints"
    saved = checkpoint.load_agreed(checkpoints, context, task.strategy.loads_on)
    if saved:
        check_checkpoint(saved, stage.inputs, checkpoints)
    loop = TrainingLoop(task, folder, stage.inputs, stop, saved)
    if context.main:
        log.info("networks: %s%s", task, f", continued at step {loop.start}" if saved else "")
    with tuned_convolutions(True):
        loop.run()
    network = task.strategy.evaluated()
    assert isinstance(network, Backbone)
    return network.eval().requires_grad_(False), loop.seconds


def _see(folder: Path, views: dict[str, Any], backbone: RunBackbone, stage: Stage, stop: StopFlag) -> float:
    """Store a network's activations of the images of these views, and return the seconds of this start."""
    began = time.perf_counter()
    see_images(folder, views, backbone, stage.run.config, stage.context, stop)
    return time.perf_counter() - began


def _finish(folder: Path, stage: Stage, seconds: float, task: NetworkTraining) -> None:
    """Mark a network as done; its checkpoints are not needed any more."""
    if stage.context.main:
        facts = {"inputs": digest(stage.inputs), "steps": task.schedule.steps, "seconds": round(seconds, 1)}
        write_text(folder / DONE, json.dumps(facts) + "\n")
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    stage.context.barrier("networks-made")
