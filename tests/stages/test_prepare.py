"""Stage 0: drawing replaces nobody's files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dist_train.config import Config, DataConfig, DrawConfig, PackConfig
from dist_train.data.drawing import split_of
from dist_train.data.splits import Split, load_split, save_split
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.stages.prepare import prepare


def test_a_split_of_another_kind_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw = DrawConfig(base_classes=6, novel_classes=3, train_per_class=4, val_per_class=2)
    config = Config(
        data=DataConfig(shards=str(tmp_path / "shards"), split=str(tmp_path / "mine.json")),
        pack=PackConfig(train=tmp_path / "train", val=tmp_path / "val", draw=draw, workers=1),
    )
    drawn = split_of(draw)
    mine = Split("mine", drawn.base[1:], drawn.novel)
    save_split(mine, tmp_path / "mine.json")
    before = (tmp_path / "mine.json").read_bytes()
    published = replace(config, data=replace(config.data, split="imagenet_900_100"))
    for wrong in (config, published):
        with pytest.raises(UserError, match=r"data.split=.*: pack.draw writes its own split there"):
            prepare(wrong, Context())
    assert (tmp_path / "mine.json").read_bytes() == before and sorted(tmp_path.iterdir()) == [tmp_path / "mine.json"]

    own = replace(config, data=replace(config.data, split=str(tmp_path / "own.json")))
    for _ in range(2):  # again, over its own
        prepare(own, Context())
    assert load_split(str(tmp_path / "own.json")).hash == drawn.hash
