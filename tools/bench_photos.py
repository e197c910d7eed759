"""Measure a model made of photos alone: how long making and extending it takes, and how often it is right.

    python tools/bench_photos.py --archive ILSVRC2012_img_train.tar [--backbone starter] [--draws 5] [--out photos.json]

A draw has a model of 20 classes of 100 photos, to which 6 classes of 12 photos are added; then 30 further photos of
each of the 26 classes are scored among all of them. The commands ``dist-train create`` and ``dist-train adapt`` are
timed in the first draw; in all draws the same is done in Python with activations that are computed once, and other
heads get the same activations: the class mean, scikit-learn's LogisticRegression and LinearDiscriminantAnalysis, and a
last layer that is fine-tuned by SGD. Ours is made twice, with ``--prior equal`` and ``--prior photos``. The archive is
a tar of one tar per class; the classes of a draw are the first by the hash of their names and the draw's number.
Nothing is chosen by the photos that are scored. ``--cache FOLDER`` keeps the activations, so that a measurement that
was stopped continues.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import resource
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy.stats import t as student
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from dist_train.classifier import from_photos
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.heads.prior import PRIORS
from dist_train.config import BackboneConfig
from dist_train.models.backbones import Pretrained, open_pretrained

FIRST, ADDED = 20, 6
PHOTOS_FIRST, PHOTOS_ADDED, HELD_OUT = 100, 12, 30
Scores = Callable[[torch.Tensor], torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--cache", type=Path, help="folder for the activations of each class")
    parser.add_argument("--out", type=Path, help="JSON file of the results of each draw")
    args = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        unpack(args.archive, 0, Path(folder))
        times = {prior: measure_commands(Path(folder), args.backbone, prior) for prior in PRIORS}
    print(f"commands, draw 0: {json.dumps(times)}", flush=True)
    network, activations, results = open_pretrained(BackboneConfig(source=args.backbone)), {}, []
    for number in range(args.draws):
        with TemporaryDirectory() as folder:
            unpack(args.archive, number, Path(folder))
            embed(network, Path(folder), activations, args.cache)
            results.append(measure(network, Path(folder), activations))
        print(f"draw {number}: {json.dumps(results[-1])}", flush=True)
        if args.out:
            args.out.write_text(json.dumps({"commands": times, "draws": results}, indent=1) + "\n")
    print(table(results, times))


def unpack(archive: Path, number: int, folder: Path) -> None:
    """Write the photos of a draw: first/CLASS/*.jpg, added/CLASS/*.jpg and held_out/CLASS/*.jpg."""
    with tarfile.open(archive) as outer:
        members = sorted(
            outer.getmembers(), key=lambda m: hashlib.sha256(f"{number}:{Path(m.name).stem}".encode()).digest()
        )
        for place, member in enumerate(members[: FIRST + ADDED]):
            kind, count = ("first", PHOTOS_FIRST) if place < FIRST else ("added", PHOTOS_ADDED)
            inner_file = outer.extractfile(member)
            assert inner_file is not None
            with tarfile.open(fileobj=inner_file) as inner:
                names = [entry for entry in inner.getmembers() if entry.isfile()]
                for photo, entry in enumerate(names[: PHOTOS_FIRST + HELD_OUT]):
                    # A photo is held out by its place, whichever classes are added.
                    where = "held_out" if photo >= PHOTOS_FIRST else kind
                    if where != "held_out" and photo >= count:
                        continue
                    path = folder / where / Path(member.name).stem / f"{photo:04}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = inner.extractfile(entry)
                    assert file is not None
                    path.write_bytes(file.read())


def measure_commands(folder: Path, backbone: str, prior: str) -> dict[str, float]:
    """Return the seconds of the two commands, those of the CPU too, and how often their model is right, in percent."""
    model_folder = folder / prior
    options = ("--backbone", backbone, "--prior", prior, "--out", model_folder)
    seconds = {
        **command("create", folder / "first", *options),
        **command("adapt", model_folder, "--classes", folder / "added"),
    }
    model = Classifier.load(model_folder, "cpu")
    held_out = [model.activations(sorted((folder / "held_out" / entry.name).iterdir())) for entry in model.classes]
    return {key: round(value, 2) for key, value in (seconds | accuracies(model.scores, held_out)).items()}


def embed(network: Pretrained, folder: Path, known: dict[str, torch.Tensor], cache: Path | None) -> None:
    """Add to ``known`` the activations of each photo of a draw, by the photo's class and file; and of each class to the
    cache."""
    model = from_photos.without_classes(network)
    for photos in (group for kind in ("first", "added", "held_out") for group in sorted((folder / kind).iterdir())):
        names = [f"{photos.name}/{photo.name}" for photo in sorted(photos.iterdir())]
        file = cache and cache / f"{photos.name}-{photos.parent.name}.pt"
        if not set(names) <= known.keys():
            if file and file.exists():
                rows = torch.load(file, weights_only=True)
            else:
                rows = model.activations(sorted(photos.iterdir()))
                if file:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    torch.save(rows, file)
            known.update(zip(names, rows, strict=True))


def measure(network: Pretrained, folder: Path, known: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """Return {row: {first, added, fit}} of a draw: accuracies in percent of all 26 classes, and the seconds of fits."""

    def rows(kind: str) -> dict[str, torch.Tensor]:
        return {
            group.name: torch.stack([known[f"{group.name}/{photo.name}"] for photo in sorted(group.iterdir())])
            for group in sorted((folder / kind).iterdir())
        }

    first, added, held_out = rows("first"), rows("added"), rows("held_out")
    shown = [*first.values(), *added.values()]
    queries = [held_out[name] for name in (*first, *added)]
    results = {}
    ours = {f"dist-train, --prior {prior}": partial(create_and_adapt, network, first, added, prior) for prior in PRIORS}
    for name, fit in {**ours, **PEERS}.items():
        began = time.perf_counter()
        scores = fit(shown)
        results[name] = accuracies(scores, queries) | {"fit": time.perf_counter() - began}
    return {name: {key: round(value, 2) for key, value in row.items()} for name, row in results.items()}


def create_and_adapt(
    network: Pretrained,
    first: dict[str, torch.Tensor],
    added: dict[str, torch.Tensor],
    prior: str,
    _: Sequence[torch.Tensor],
) -> Scores:
    """Do what the two commands do, from activations."""
    model = from_photos.without_classes(network, prior=prior)
    for classes in (first, added):
        for name, rows in classes.items():
            model.add_activations(name, rows)
        model.head()
    return model.scores


def command(name: str, *words: object) -> dict[str, float]:
    """Run a command of dist-train, and return its seconds, the start of Python included, and those of the CPU, which a
    busy machine lengthens less."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "dist_train", name, *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {name: seconds, f"{name} CPU": cpu}


def accuracies(scores: Scores, held_out: Sequence[torch.Tensor]) -> dict[str, float]:
    """Return the percentages of the first and of the added classes' photos that are classified correctly."""
    right = [100 * float((scores(rows).argmax(1) == place).double().mean()) for place, rows in enumerate(held_out)]
    return {"first": float(np.mean(right[:FIRST])), "added": float(np.mean(right[FIRST:]))}


def class_mean(shown: Sequence[torch.Tensor]) -> Scores:
    means = normalize(torch.stack([normalize(rows, dim=1).mean(0) for rows in shown]), dim=1)
    return lambda queries: normalize(queries, dim=1) @ means.T


def logistic(shown: Sequence[torch.Tensor]) -> Scores:
    return _scikit(LogisticRegression(max_iter=1000), shown)


def discriminant(shown: Sequence[torch.Tensor]) -> Scores:
    return _scikit(LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"), shown)


def last_layer(shown: Sequence[torch.Tensor]) -> Scores:
    """Fine-tune a new last layer: 50 epochs of SGD, batches of 32, rate 0.01 to zero by half a cosine."""
    inputs, labels = torch.cat(list(shown)), _labels(shown)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    layer, epochs = torch.nn.Linear(inputs.shape[1], len(shown)), 50
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(inputs), generator=generator).split(32):
            optimizer.zero_grad()
            cross_entropy(layer(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    return torch.no_grad()(layer)


PEERS = {
    "class mean": class_mean,
    "LogisticRegression": logistic,
    "LinearDiscriminantAnalysis": discriminant,
    "last layer, fine-tuned": last_layer,
}


def _scikit(estimator: LogisticRegression | LinearDiscriminantAnalysis, shown: Sequence[torch.Tensor]) -> Scores:
    with contextlib.redirect_stderr(io.StringIO()):
        estimator.fit(torch.cat(list(shown)).double().numpy(), _labels(shown).numpy())
    return lambda queries: torch.from_numpy(estimator.decision_function(queries.double().numpy()))


def _labels(shown: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.arange(len(shown)).repeat_interleave(torch.tensor([len(rows) for rows in shown]))


def table(results: Sequence[dict[str, dict[str, float]]], times: dict[str, dict[str, float]]) -> str:
    """Return a table in Markdown: means over draws, with 95% intervals of the mean (Student's t); and a line on the
    commands by each prior."""
    lines = [f"| {len(results)} draws | first classes (%) | added classes (%) |", "|---|---:|---:|"]
    for name in results[0]:
        cells = [mean_text([result[name][key] for result in results]) for key in ("first", "added")]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    for prior, own in times.items():
        commands = (f"{name} {own[name]:.1f} s ({own[f'{name} CPU']:.1f} s of CPU)" for name in ("create", "adapt"))
        lines += ["", f"--prior {prior}: {', '.join(commands)}"]
    return "\n".join(lines)


def mean_text(values: Sequence[float]) -> str:
    """Return the mean with its 95% interval (Student's t), or a lone value as it is."""
    if len(values) < 2:
        return f"{values[0]:.1f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.1f} ± {half:.1f}"


if __name__ == "__main__":
    main()
