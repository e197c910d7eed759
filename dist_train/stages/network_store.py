"""Where the stage ``networks`` keeps what it makes, and whether all of it is there.

networks/triplet_network/                          final/ (the network), the tables of extract, done.json
networks/finetune_network/seed0-draw0-shots1/      head.npz, the tables of validation images, done.json
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dist_train.config import Config

DONE = "done.json"
"""Written last into each network's folder; it has the facts of its training."""


def triplet_folder(config: Config) -> Path:
    """Return the folder of the triplet network."""
    return config.run_dir / "networks" / "triplet_network"


def finetuned_folder(config: Config, draw: int, shots: int) -> Path:
    """Return the folder of the network that is fine-tuned on the supports of a draw."""
    name = f"seed{config.evaluate.seed}-draw{draw}-shots{shots}"
    return config.run_dir / "networks" / "finetune_network" / name


def network_folders(config: Config, networks: Sequence[str]) -> list[Path]:
    """Return the folders of these networks of ``NETWORKS``: one of the triplet network, one for each draw and number of
    shots of the fine-tuned ones."""
    folders = [triplet_folder(config)] if "triplet_network" in networks else []
    if "finetune_network" in networks:
        draws, shots = range(config.networks.draws), config.evaluate.shots
        folders += [finetuned_folder(config, draw, k) for draw in draws for k in shots]
    return folders


def all_trained(config: Config) -> bool:
    """Return whether every network that a row of the configuration needs is there."""
    return all((folder / DONE).is_file() for folder in network_folders(config, config.networks_to_train))
