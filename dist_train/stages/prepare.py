"""Chapter 0 of ``run``: draw and pack, where the configuration asks for it and the shards are not there."""

from __future__ import annotations

import logging

from dist_train.config import Config
from dist_train.context import Context
from dist_train.data.drawing import draw_dataset
from dist_train.data.pack import pack

log = logging.getLogger("dist_train")


def prepare(config: Config, context: Context) -> None:
    """Rank 0 draws and packs; the others wait as long as it takes.

    Raises:
        UserError: an archive is missing or wrong (see ``pack``).
    """
    if context.main and config.pack and not (config.data.shards / "index.json").is_file():
        if config.pack.draw and config.pack.train:
            draw_dataset(config.pack.draw, config.pack.train.parent)
        pack(config.pack, config.data.shards)
    context.barrier("prepare")
