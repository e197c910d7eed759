"""Stage 0 of ``run``: draw and pack, where the configuration asks for it and the shards are not there."""

from __future__ import annotations

from pathlib import Path

from dist_train.config import Config, PackConfig
from dist_train.data.drawing import check_drawn, draw, split_of
from dist_train.data.packing.pack import pack
from dist_train.data.sources.paths import is_there
from dist_train.data.splits import load_split, save_split
from dist_train.distributed.context import Context
from dist_train.errors import UserError


def prepare(config: Config, context: Context) -> None:
    """Draw and pack on rank 0; the other ranks wait as long as it takes.

    Raises:
        UserError: an archive is missing or wrong (see ``pack``).
    """
    shards = Path(config.data.shards)
    if config.pack and "://" in config.data.shards:
        raise UserError(
            f"data.shards={config.data.shards}: pack into a local folder and upload that; leave pack out here"
        )
    there = (shards / "index.json").is_file()
    context.report_progress("pack", patient=True)
    if context.main and config.pack and (not there or _sources_exist(config.pack)):
        # Where the shards are there already, pack says so, or refuses other options than they were made with.
        if config.pack.draw and config.pack.train and config.pack.val:
            check_drawing(config.pack, config.data.split)
            draw(config.pack.draw, config.pack.train, config.pack.val)
            if not Path(config.data.split).exists():
                save_split(split_of(config.pack.draw), Path(config.data.split))
        pack(config.pack, shards)
    context.barrier("prepare")


def check_drawing(options: PackConfig, split: str) -> None:
    """Check that nothing stands in the way of drawing.

    Raises:
        UserError: the folders to draw into hold something else, or ``data.split`` is another split than that of the
            drawn classes.
    """
    if not (options.draw and options.train and options.val):
        return
    check_drawn(options.draw, options.train, options.val)
    path = Path(split)
    if path.suffix != ".json" or (path.exists() and load_split(split).hash != split_of(options.draw).hash):
        raise UserError(
            f"data.split={split}: pack.draw writes its own split there, and this is another; give the path of a new "
            ".json file, or --pack null where the shards are there"
        )


def _sources_exist(options: PackConfig) -> bool:
    """Tell whether the archives are there. They may be deleted once they are packed; then the shards are taken as they
    are."""
    return options.train is not None and is_there(options.train)
