import json
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.shards import ShardSet
from dist_train.data.splits import Split, draw_split, load_split, make_view, save_split
from dist_train.errors import UserError


def test_published_imagenet_split() -> None:
    split = load_split("imagenet_900_100")
    assert (len(split.base), len(split.novel), len(split.pseudo_novel)) == (900, 100, 100)
    assert split.hash == "ba04876b71655a2c"
    classes = sorted([*split.base, *split.novel])
    again = draw_split("x", classes, 100, 100, seed=0)
    assert (again.base, again.novel, again.pseudo_novel) == (split.base, split.novel, split.pseudo_novel)
    base, novel = split.roles("pseudo-novel")
    assert (len(base), len(novel)) == (800, 100) and not set(novel) & set(split.novel)


def test_published_tiny_imagenet_split() -> None:
    split = load_split("tiny_imagenet_180_20")
    assert (len(split.base), len(split.novel), len(split.pseudo_novel)) == (180, 20, 20)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    save_split(Split("s", ("a", "b"), ("c",)), path)
    assert load_split(str(path)).base == ("a", "b")
    entry = json.loads(path.read_text())
    path.write_text(json.dumps({**entry, "novel": ["d"]}))
    with pytest.raises(UserError, match="lists were changed"):
        load_split(str(path))
    with pytest.raises(UserError, match=r"no published split \(imagenet_900_100"):
        load_split("nowhere")
    path.write_text("{}")
    with pytest.raises(UserError, match="not a split file"):
        load_split(str(path))


@pytest.mark.parametrize(
    ("base", "novel", "pseudo", "message"),
    [
        (("a",), ("a",), (), "'a' is base and novel"),
        ((), ("a",), (), "no base class"),
        (("a", "a"), ("b",), (), "'a' twice"),
        (("a",), ("b",), ("c",), "'c' is no base class"),
    ],
)
def test_contradictions_are_named(base: tuple, novel: tuple, pseudo: tuple, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=message):
        Split("s", base, novel, pseudo)


def test_view_and_its_guard(shards: ShardSet) -> None:
    train = shards["train"]
    base, novel = shards.classes[:6], shards.classes[6:]
    view, other = (make_view(train, shards.classes, c, "s") for c in (base, novel))
    assert len(view) + len(other) == len(train) and not set(view.ids) & set(other.ids)
    names = np.array(shards.classes)[train.samples["label"][view.ids]]
    assert (names == np.array(base)[view.labels]).all()
    assert np.array_equal(view.labels_of(view.ids), view.labels)
    with pytest.raises(UserError, match="not in this view"):
        view.labels_of(np.append(view.ids[:3], other.ids[0]))
    with pytest.raises(UserError, match="'n99' is not in"):
        make_view(train, shards.classes, (*base, "n99"), "s")
