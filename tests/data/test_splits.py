import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import Split, draw_split, load_split, make_view, save_split
from dist_train.errors import UserError
from dist_train.report import paper


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


def test_published_low_shot_split() -> None:
    split = load_split("imagenet_hariharan_girshick")
    assert split.hash == paper.LOW_SHOT_SPLIT
    base, novel, validation = set(split.base), set(split.novel), set(split.pseudo_novel)
    halves = [set(split.scored_with_novel), set(split.scored_with_pseudo_novel)]
    assert (len(base), len(novel | validation)) == (389, 611)
    assert [len(halves[1]), len(validation), len(halves[0]), len(novel)] == [193, 300, 196, 311]
    assert not base & novel and not base & validation and not novel & validation
    assert halves[0] | halves[1] == base and not halves[0] & halves[1]
    other = load_split("imagenet_900_100")
    assert base | novel | validation == {*other.base, *other.novel}  # all wnids of ILSVRC
    for holdout, scored, added in (("novel", 196, 311), ("pseudo-novel", 193, 300)):
        kept, new = split.roles(holdout)
        assert set(kept) == base and (len(split.scored(holdout)), len(new)) == (scored, added)
    # The benchmark's lists start 0, 1, 2, 6 (base), 3, 4 (validation), 8, 10 (test), into label_names that start
    # like this. Into sorted wnids they give another split: fish and birds.
    names = (
        "n01807496 n02916936 n03794056 n10565667 n02978881 n03126707 n03394916 n07693725 n03710193 n02342885 n02105412"
    )
    first = names.split()
    assert {first[i] for i in (0, 1, 2, 6)} <= base and {first[3], first[4]} <= validation
    assert {first[8], first[10]} <= novel and first[6] in halves[1] and first[0] in halves[0]
    assert "n01440764" in novel  # the tench, first of the sorted ones, would be base


def test_published_mini_imagenet_split() -> None:
    split = load_split("mini_imagenet_80_20")
    assert split.hash == paper.MINI_SPLIT
    assert (len(split.base), len(split.novel), len(split.pseudo_novel)) == (80, 20, 16)
    base, novel = split.roles("pseudo-novel")
    assert (len(base), len(novel)) == (64, 16) and split.scored("pseudo-novel") == base
    other = load_split("imagenet_900_100")
    assert {*split.base, *split.novel} <= {*other.base, *other.novel}
    assert split.novel[0] == "n01930112" and split.novel[-1] == "n07613480"


def test_a_split_by_halves(tmp_path: Path) -> None:
    split = Split("h", ("a", "b", "c"), ("x", "y"), ("u",), "", ("a",), ("b", "c"))
    assert split.roles("novel") == (("a", "b", "c"), ("x", "y")) and split.scored("novel") == ("a",)
    assert split.roles("pseudo-novel") == (("a", "b", "c"), ("u",)) and split.scored("pseudo-novel") == ("b", "c")
    save_split(split, tmp_path / "h.json")
    assert load_split(str(tmp_path / "h.json")) == split
    entry = json.loads((tmp_path / "h.json").read_text())
    (tmp_path / "h.json").write_text(json.dumps({**entry, "scored_with_novel": ["b"]}))
    with pytest.raises(UserError, match="lists were changed"):
        load_split(str(tmp_path / "h.json"))
    for changes, message in (
        ({"pseudo_novel": ("a",)}, "'a' is base or novel too"),
        ({"pseudo_novel": ("x",)}, "'x' is base or novel too"),
        ({"pseudo_novel": ()}, "halves need"),
        ({"novel": ()}, "halves need"),
        ({"scored_with_pseudo_novel": ()}, "halves need"),
        ({"scored_with_novel": ("x",)}, "scored_with_novel names 'x', which is no base class"),
    ):
        with pytest.raises(UserError, match=message):
            replace(split, **changes)  # type: ignore[arg-type]


def test_a_split_without_novel_classes(tmp_path: Path) -> None:
    split = draw_split("all", ["a", "b", "c", "d"], 0, 1, 0)
    assert split.base == ("a", "b", "c", "d") and not split.novel and len(split.pseudo_novel) == 1
    assert split.roles("novel") == (split.base, ())
    assert len(split.roles("pseudo-novel")[0]) == 3
    save_split(split, tmp_path / "all.json")
    assert load_split(str(tmp_path / "all.json")) == split
    with pytest.raises(UserError, match="--novel -1 --pseudo-novel 0: give at least 0 of each"):
        draw_split("all", ["a", "b"], -1, 0, 0)
    with pytest.raises(UserError, match="leave no base class"):
        draw_split("all", ["a", "b"], 0, 2, 0)


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
