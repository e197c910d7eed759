"""Images to table: on two ranks under torchrun, on one rank, and interrupted and continued."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from fixtures.processes import WarmPython

from dist_train.config import Config, to_dict
from dist_train.data.activations import Store, load
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.errors import UserError
from dist_train.runs.run import open_run
from dist_train.runs.stage import Stage
from dist_train.stages.evaluate import evaluate
from dist_train.stages.extract import extract
from dist_train.stages.learn import learn
from dist_train.stages.pretrain import pretrain
from dist_train.training import checkpoint
from dist_train.training.metrics import read_metrics, reproducible

TorchRun = Callable[..., subprocess.CompletedProcess[str]]
WithBackbone = Callable[[Config], Config]


def write(config: Config, folder: Path, **changes: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**to_dict(config), **changes}))
    return path


def final(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = checkpoint.load(run / "pretrain" / "final").tensors["model"]
    return found


def test_two_ranks_from_images_to_table(config: Config, tmp_path: Path, torchrun: TorchRun) -> None:
    path = write(config, tmp_path)
    done = torchrun(2, "-m", "dist_train", "run", "--config", str(path))
    run = config.run_dir
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert set(results["methods"]) == {"nn", "mean", "phi1", "phi2", "phi2star"}
    assert results["queries"] == {"base": 36, "novel": 18} and results["classes"] == {"base": 6, "novel": 3}
    assert len(results["methods"]["phi2"]["3"]["novel_top1"]["draws"]) == 4
    assert (run / "evaluate" / "table.md").read_text() in done.stdout
    report = (run / "evaluate" / "report.html").read_text()
    assert "<svg" in report and 'src="http' not in report
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["machine"]["ranks"] == 2 and provenance["shards"] == results["shards"]
    rows = read_metrics(run / "pretrain" / "metrics.jsonl")
    tags = {tag for row in rows for tag in row}
    assert {
        "train/loss",
        "train/top1(%)",
        "eval/top1(%)",
        "optim/lr",
        "optim/gradient_norm",
        "optim/loss_scale",
    } <= tags
    assert {"time/throughput(images/s)", "time/data_wait(ms/step)", "time/compute(ms/step)"} <= tags
    assert list((run / "pretrain" / "tb").glob("events.*")) and list((run / "learn" / "phi2" / "tb").glob("events.*"))

    before = {p: p.stat().st_mtime_ns for p in run.rglob("done.json")}
    again = torchrun(1, "-m", "dist_train", "run", "--config", str(path))
    assert "evaluate: done already" in again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("done.json")}


def test_killed_and_continued_is_bit_equal(config: Config, tmp_path: Path, warm_python: WarmPython) -> None:
    config = replace(config, pretrain=replace(config.pretrain, epochs=4, checkpoint_every=3))
    run = open_run(replace(config, name="whole"))
    pretrain(run, Context(), StopFlag(Context()))

    path = write(config, tmp_path, name="killed")
    process = warm_python.start("pretrain", "--config", str(path), stderr=subprocess.DEVNULL)
    folder = config.runs / "killed" / "pretrain" / "checkpoints"
    deadline = time.monotonic() + 120
    while not checkpoint.step_checkpoints(folder) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pretrain(open_run(replace(config, name="killed")), Context(), StopFlag(Context()))

    whole, killed = (final(config.runs / name) for name in ("whole", "killed"))
    assert all(torch.equal(value, killed[name]) for name, value in whole.items())
    rows = [reproducible(read_metrics(config.runs / n / "pretrain" / "metrics.jsonl")) for n in ("whole", "killed")]
    assert rows[0] == rows[1]


def test_uneven_ranks_are_refused_before_anything_is_trained(
    config: Config, tmp_path: Path, torchrun: TorchRun
) -> None:
    config = replace(config, pretrain=replace(config.pretrain, global_batch=25))
    done = torchrun(2, "-m", "dist_train", "pretrain", "--config", str(write(config, tmp_path)), check=False)
    assert done.returncode != 0
    assert "25 images do not divide into 2 ranks" in done.stderr
    assert not config.runs.exists()


def test_extract_continues_after_an_interruption_on_other_ranks(
    config: Config, monkeypatch: pytest.MonkeyPatch, with_backbone: WithBackbone
) -> None:
    run = open_run(with_backbone(config))
    extract(run, Context(), StopFlag(Context()))
    whole = {p.name: p.read_bytes() for p in (run.dir / "extract").glob("*.np*")}
    reference = load(run.dir / "extract", "base_train")
    labels = run.shards["train"].samples["label"][reference.ids]
    names = [run.shards.classes[c] for c in labels]
    assert names == [run.base[c] for c in reference.labels]

    calls = 0
    true = Store.write

    def fails(self: Store, *given: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        true(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Store, "write", fails)
    with pytest.raises(KeyboardInterrupt):
        extract(run, Context(), StopFlag(Context()), redo=True)
    monkeypatch.setattr(Store, "write", true)
    assert not (run.dir / "extract" / "done.json").exists()
    extract(run, Context(), StopFlag(Context()))
    again = load(run.dir / "extract", "base_train")
    assert abs(again.rows.astype(float) - reference.rows.astype(float)).max() < 1e-2
    assert set(whole) == {p.name for p in (run.dir / "extract").glob("*.np*")}


def test_changed_inputs_stop_and_redo_starts_again(config: Config, with_backbone: WithBackbone) -> None:
    run = open_run(with_backbone(config))
    for stage in (extract, learn, evaluate):
        stage(run, Context(), StopFlag(Context()))
    changed = open_run(replace(config, learn=replace(config.learn, lr=0.5)))
    pretrain(changed, Context(), StopFlag(Context()))  # its inputs are the same
    with pytest.raises(UserError, match=r"learn: was made from other inputs \(learn.lr: 0.001 -> 0.5\).*--redo"):
        learn(changed, Context(), StopFlag(Context()))
    learn(changed, Context(), StopFlag(Context()), redo=True)
    assert not (run.dir / "evaluate").exists()  # it was made from the predictor that is gone
    evaluate(changed, Context(), StopFlag(Context()))


def test_redo_of_one_stage_takes_the_later_ones_along_and_checks_first(
    config: Config, with_backbone: WithBackbone
) -> None:
    run = open_run(with_backbone(config))
    for stage in (extract, learn, evaluate):
        stage(run, Context(), StopFlag(Context()))
    pretrain(run, Context(), StopFlag(Context()), redo=True)
    assert sorted(p.name for p in run.dir.iterdir() if p.is_dir()) == ["pretrain"]
    with pytest.raises(UserError, match="extract is not finished"):
        learn(run, Context(), StopFlag(Context()), redo=True)
    assert (run.dir / "pretrain" / "done.json").is_file()


def test_options_that_do_not_fit_claim_nothing(config: Config) -> None:
    wrong = {
        "50 images a rank|only 120": replace(config.pretrain, global_batch=500),
        "batch norm needs 2": replace(config.pretrain, global_batch=1),
    }
    for message, options in wrong.items():
        with pytest.raises(UserError, match=message):
            open_run(replace(config, pretrain=options))
    with pytest.raises(UserError, match=r"shots=\[50\].*only 20"):
        open_run(replace(config, evaluate=replace(config.evaluate, shots=[50])))
    with pytest.raises(ValueError, match=r"pretrain.model=alexnet: must be one of conv4, .*resnet50"):
        replace(config.pretrain, model="alexnet")
    with pytest.raises(UserError, match=r"evaluate.methods: 'phi2' needs 'phi2' in learn.methods"):
        open_run(replace(config, learn=replace(config.learn, methods=["phi1"])))
    assert not config.run_dir.exists()


def test_a_predictor_does_not_depend_on_its_neighbours(config: Config, with_backbone: WithBackbone) -> None:
    kept = []
    for name, methods in (("both", ["phi1", "phi2"]), ("alone", ["phi2"])):
        options = replace(config.learn, methods=methods)
        one = replace(config, name=name, learn=options, evaluate=replace(config.evaluate, methods=["phi2"]))
        run = open_run(with_backbone(one))
        for stage in (extract, learn):
            stage(run, Context(), StopFlag(Context()))
        kept.append(checkpoint.load(run.dir / "learn" / "phi2" / "final").tensors["model"])
    assert all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())


def test_another_block_size_does_not_leave_holes_in_extract(config: Config, with_backbone: WithBackbone) -> None:
    run = open_run(with_backbone(config))
    (run.dir / "extract").mkdir()
    Stage(run, "extract", Context())  # started
    with pytest.raises(UserError, match=r"extract.block: 16 -> 15"):
        extract(open_run(replace(config, extract=replace(config.extract, block=15))), Context(), StopFlag(Context()))


def test_accumulation_is_one_larger_batch(config: Config) -> None:
    """Without batch norm's per-pass statistics the two would be equal; with it they are close."""
    losses = []
    for accumulate in (1, 2):
        c = replace(config, name=f"a{accumulate}", pretrain=replace(config.pretrain, accumulate=accumulate, epochs=1))
        pretrain(open_run(c), Context(), StopFlag(Context()))
        losses.append(
            [r["train/loss"] for r in read_metrics(c.run_dir / "pretrain" / "metrics.jsonl") if "train/loss" in r]
        )
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.1)
