"""Complete runs in the other protocols: by halves, and episodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from dist_train.config import Config, configs_dir, to_dict
from dist_train.config.io import Parser
from dist_train.data.activations import load
from dist_train.data.splits import Split, load_split, save_split
from dist_train.errors import UserError
from dist_train.runs.inputs import check_inputs
from dist_train.runs.run import check_config, open_run
from dist_train.stages.scoring import EpisodeScoring
from launch.cli.main import main

WithBackbone = Callable[..., Config]


@pytest.fixture
def halves(config: Config, tmp_path: Path) -> Config:
    """Make a small split in the form of Hariharan & Girshick's: 5 base classes, 2 + 2 novel."""
    names = open_run(config).shards.classes
    base, test, validation = names[:5], names[5:7], names[7:9]
    split = Split("small", base, test, validation, "", (base[1], base[4]), (base[0], base[2], base[3]))
    save_split(split, tmp_path / "halves.json")
    data = replace(config.data, split=str(tmp_path / "halves.json"))
    evaluate = replace(config.evaluate, shots=[1, 2, 5], draws=3)
    evaluate = replace(evaluate, methods=["nn", "mean", "imprint", "ridge", "phi2", "phi_plus", "nn_oracle"])
    return replace(config, data=data, evaluate=evaluate, learn=replace(config.learn, methods=["phi2", "phi_plus"]))


def dist_train(config: Config, folder: Path, *arguments: str) -> dict:  # type: ignore[type-arg]
    """Run ``dist-train ARGUMENTS``, and return results.json."""
    path = folder / f"{config.name}.yaml"
    path.write_text(yaml.safe_dump(to_dict(config)))
    assert main([*arguments, "--config", str(path)]) == 0
    found: dict = json.loads((config.run_dir / "evaluate" / "results.json").read_text())  # type: ignore[type-arg]
    return found


def test_halves_from_images_to_table(halves: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = halves
    results = dist_train(config, tmp_path, "run")
    assert results["classes"] == {"base": 2, "novel": 2} and results["queries"] == {"base": 12, "novel": 12}
    for by_shots in results["methods"].values():
        assert set(by_shots) == {"1", "2", "5"}
        for values in by_shots.values():
            mean = {metric: value["mean"] for metric, value in values.items()}
            assert mean["all_top1"] == pytest.approx((mean["base_top1"] + mean["novel_top1"]) / 2)
            assert mean["novel_only_top1"] >= mean["novel_top1"] and mean["novel_only_top5"] == 100  # of 2 classes
            assert all(len(value["draws"]) == 3 for value in values.values())
    text = (config.run_dir / "evaluate" / "table.md").read_text()
    assert "| φ2 | all with prior |" in text and "published" not in text
    html = (config.run_dir / "evaluate" / "report.html").read_text()
    assert "<h2>Low-shot ImageNet</h2>" in html and "All 4 classes" in html
    examples = html.partition("<h2>Examples of novel classes</h2>")[2].partition("<h2>")[0]
    assert examples.count('<div class="card">') == 2
    maps = json.loads((config.run_dir / "evaluate" / "figures" / "maps.json").read_text())
    assert len(maps["classes"]) == 5  # all that the backbone knows
    assert set(results["oracles"]) == {"nn_oracle"}
    # Backbone and predictors know all 5 base classes; 2 of them are scored.
    assert len(load(config.run_dir / "extract", "base_train").offsets) == 6
    with np.load(config.run_dir / "evaluate" / "rows" / "phi2.npz") as confusions:
        assert confusions["5"].shape == (4, 4) and confusions["5"].sum() == 3 * 24
    shutil.rmtree(config.run_dir / "evaluate")
    for share in ("0/2", "1/2"):
        assert main(["evaluate", "--share", share, "--config", str(tmp_path / f"{config.name}.yaml")]) == 0
    merged = dist_train(config, tmp_path, "evaluate")
    assert [merged[key] for key in ("methods", "oracles", "curves")] == [
        results[key] for key in ("methods", "oracles", "curves")
    ]

    # The validation half has the same backbone: it is not trained again.
    other = replace(config, name="validation", data=replace(config.data, holdout="pseudo-novel"))
    shutil.copytree(config.run_dir / "pretrain", other.run_dir / "pretrain")
    caplog.set_level("INFO")
    results = dist_train(other, tmp_path, "run")
    assert "pretrain: done already" in caplog.text
    assert results["classes"] == {"base": 3, "novel": 2} and results["queries"] == {"base": 18, "novel": 12}


def test_episodes_from_activations_to_table(config: Config, tmp_path: Path, with_backbone: WithBackbone) -> None:
    options = replace(
        config.evaluate, protocol="episodes", rule="mean", ways=3, queries=7, shots=[1, 5], draws=6,
        methods=["nn", "mean", "ridge", "phi1", "phi2"],
    )  # fmt: skip
    config = replace(config, evaluate=options, learn=replace(config.learn, methods=["phi1", "phi2"]))
    with_backbone(config, extracted=True)
    results = dist_train(config, tmp_path, "run")
    assert results["episodes"] == {"ways": 3, "queries": 7} and results["interval"] == "95% t-interval over episodes"
    for by_shots in results["methods"].values():
        for values in by_shots.values():
            draws = values["accuracy"]["draws"]
            assert len(draws) == 6 and all(v * 21 / 100 == pytest.approx(round(v * 21 / 100), abs=1e-4) for v in draws)
            assert values["accuracy"]["ci95"] > 0
    table = config.run_dir / "evaluate" / "table.md"
    assert "Queries of each class: 7, " in table.read_text() and list((table.parent / "tb" / "phi2").glob("events.*"))
    assert not (table.parent / "report.html").exists()

    # As released: all other images of a class (it has 20) are queries, and beyond 1 shot one support too.
    released = replace(config, evaluate=replace(options, protocol="released"))
    with pytest.raises(UserError, match=r"evaluate.protocol: episodes -> released.*--redo"):
        check_inputs(open_run(released), "evaluate")
    results = dist_train(released, tmp_path, "evaluate", "--redo")
    for values in results["methods"]["phi2"].values():
        assert set(values["accuracy"]) == {"mean", "std", "draws"}
    for k, queries in (("1", 3 * 19), ("5", 3 * 16)):
        right = [v * queries / 100 for v in results["methods"]["phi2"][k]["accuracy"]["draws"]]
        assert right == pytest.approx(np.round(right), abs=1e-4)
    assert "as in the release" in table.read_text()


def test_episodes_do_not_depend_on_the_number_of_ranks_or_on_shares(
    config: Config,
    tmp_path: Path,
    torchrun: Callable[..., object],
    with_backbone: WithBackbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = replace(config.evaluate, protocol="episodes", ways=3, queries=5, shots=[1], draws=5, methods=["mean"])
    config = replace(config, evaluate=options, learn=replace(config.learn, methods=["phi1"], steps=10))
    with_backbone(config, extracted=True)
    one = dist_train(config, tmp_path, "run")
    torchrun(2, "-m", "dist_train", "evaluate", "--redo", "--config", str(tmp_path / "test.yaml"))
    two = json.loads((config.run_dir / "evaluate" / "results.json").read_text())
    assert one["methods"] == two["methods"]
    # A share in this process, and one on two ranks.
    shutil.rmtree(config.run_dir / "evaluate")
    assert main(["evaluate", "--share", "0/2", "--config", str(tmp_path / "test.yaml")]) == 0
    torchrun(2, "-m", "dist_train", "evaluate", "--share", "1/2", "--config", str(tmp_path / "test.yaml"))
    assert not (config.run_dir / "evaluate" / "results.json").exists()
    computed = []
    drawn = EpisodeScoring._episode
    monkeypatch.setattr(EpisodeScoring, "_episode", lambda *args: computed.append(args) or drawn(*args))
    assert dist_train(config, tmp_path, "evaluate")["methods"] == one["methods"] and not computed


def test_protocols_that_do_not_fit_the_data_are_refused_at_the_start(config: Config) -> None:
    for changes, message in (
        ({"protocol": "episodes", "ways": 4}, r"evaluate.ways=4: the split has only 3 novel classes"),
        ({"protocol": "episodes", "ways": 3, "queries": 18}, r"shots=\[1, 2, 3\].*only 20.*21 needed with the queries"),
        ({"protocol": "released", "rule": "mean", "ways": 3, "shots": [20]}, r"shots=\[20\].*only 20.*21 needed"),
    ):
        with pytest.raises(UserError, match=message):
            open_run(replace(config, evaluate=replace(config.evaluate, **changes)))  # type: ignore[arg-type]
    oracle = replace(config.evaluate, protocol="episodes", ways=3, queries=5, methods=["nn", "nn_oracle"])
    with pytest.raises(UserError, match=r"nn_oracle is shown all images; it needs evaluate.protocol=joint"):
        open_run(replace(config, evaluate=oracle))


@pytest.mark.parametrize("name", ["imagenet_hariharan_girshick", "mini_imagenet"])
def test_published_configs_parse(name: str) -> None:
    parser = Parser()
    parser.add_class_arguments(Config)
    config = parser.instantiate(parser.parse_path(str(configs_dir() / f"{name}.yaml")))
    assert config.name == name and load_split(config.data.split).roles("pseudo-novel")
    check_config(Config(**{key: getattr(config, key) for key in Config.__dataclass_fields__}), 8)
