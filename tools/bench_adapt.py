"""Measure how long adding classes and classifying takes, by decoding, backbone and prediction (as the paper does).

Compares prediction with fine-tuning of the last layer, and with nearest neighbour over all stored activations.

    python tools/bench_adapt.py [--backbone resnet50] [--base 900] [--per-class 1281] [--photos DIR] [--device cpu]

Weights and stored activations are random, and photos are drawn unless --photos names a folder: time depends on neither.
Everything is measured in one run, so that the ratios hold whatever else the machine does. The activations of
900 x 1281 images take 6 GB of memory. The column "times" says how many times as long as prediction fine-tuning or
nearest neighbour takes, without decoding and backbone, which all of them need, and without what is prepared once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dist_train.classifier import photo_files, photos
from dist_train.classifier.answer import Class
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.classifier.posterior import POSTERIOR_TENSORS, Posterior
from dist_train.classifier.predicted import PredictedHead, posterior_share, row_method, untrained_predictor
from dist_train.config import DrawConfig, LearnConfig
from dist_train.config.backbone import Preprocessing
from dist_train.data.account import Account
from dist_train.data.activations import Activations
from dist_train.data.drawing import picture, split_of
from dist_train.errors import counted
from dist_train.fewshot import methods
from dist_train.fewshot.method import Base, Method
from dist_train.fewshot.methods import METHODS, NUMBERS
from dist_train.models.backbones import build
from dist_train.models.backbones.ours import untrained

ADDED = (1, 10, 100)
BATCH = 32  # as in the paper, for its time per image


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--base", type=int, default=900, help="base classes")
    parser.add_argument("--per-class", type=int, default=1281, help="stored activations per base class")
    parser.add_argument("--method", default="phi2", help="phi1, phi2, phi2cal, phi_plus, phi_plus_plda, ...")
    parser.add_argument(
        "--photos", type=Path, help="folder of at least 100 photos; default: drawn photos of 500 x 375 pixels"
    )
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5, help="measurements, whose median is printed")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    with TemporaryDirectory() as folder:
        files = photo_files.in_folder(args.photos, Account()) if args.photos else draw(Path(folder))
        if len(files) < max(ADDED):
            parser.error(f"--photos {args.photos}: holds {len(files)}; give at least {max(ADDED)}")
        train = random_activations(args.base, args.per_class, untrained(args.backbone, 1).dim)
        model = random_model(args.backbone, args.method, train, args.resize, args.size, device)
        clock = Clock(device, args.repeats)
        opening, _ = clock(model.head, once=True)
        threads = torch.get_num_threads()
        print(f"{args.backbone}, {args.method}, {args.base} base classes, {counted(threads, 'thread')}, {device}")
        print(f"once, when the model is opened: {opening:.0f} ms")
        columns = ["decode", "backbone", "prediction", "all"]
        preparing, fine_tuned = clock(lambda: methods.make("child", base_of(model, train)), once=True)
        print(f"once, before any fine-tuning: {preparing:.0f} ms\n")
        added = [time_adding(clock, model, fine_tuned, files[:count]) for count in ADDED]
        print(table("adding classes of one photo (ms)", [*columns, "by fine-tuning", "times"], added))
        classified = [time_classifying(clock, model, train, files[:BATCH])]
        print(table(f"one photo of {BATCH} (ms)", [*columns, "by nearest neighbour", "times"], classified))


class Clock:
    """Measure actions in milliseconds: the median of ``repeats``, after a first call that does not count."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def __call__(self, action: Callable[[], Any], once: bool = False) -> tuple[float, Any]:
        """Return the time of an action, measured several times or once, and its last result."""
        result, times = None, []
        for _ in range(1 if once else 1 + self.repeats):
            began = time.perf_counter()
            result = action()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return 1000 * float(np.median(times[-self.repeats :])), result


def time_adding(clock: Clock, model: Classifier, fine_tuned: Method, files: list[Path]) -> list[Any]:
    """Return the table's row for adding a class per photo."""
    decode, pixels = clock(lambda: [photos.load(path) for path in files])
    backbone, activations = clock(lambda: embed(model, pixels))

    def predict() -> None:
        changed = model.copy()
        for number, activation in enumerate(activations):
            changed.add_activations(f"class {number}", activation[None])
        changed.head()

    prediction, _ = clock(predict)
    tuned, _ = clock(lambda: fine_tuned.take(activations[:, None]))
    whole = decode + backbone + prediction
    label = f"{len(files)} class{'es' * (len(files) > 1)}"
    return [label, decode, backbone, prediction, whole, decode + backbone + tuned, f"{tuned / prediction:.0f}"]


def time_classifying(clock: Clock, model: Classifier, train: Activations, files: list[Path]) -> list[Any]:
    """Return the table's row for classifying a batch, per photo."""
    decode, pixels = clock(lambda: [photos.load(path) for path in files])
    backbone, activations = clock(lambda: embed(model, pixels))
    prediction, _ = clock(lambda: model.answers(activations))
    nearest = methods.make("nn", base_of(model, train))
    neighbour, _ = clock(lambda: nearest.base_scores(activations), once=True)
    per_photo = [value / len(files) for value in (decode, backbone, prediction, decode + backbone + prediction)]
    return ["1 photo", *per_photo, (decode + backbone + neighbour) / len(files), f"{neighbour / prediction:.0f}"]


def embed(model: Classifier, pixels: list[torch.Tensor]) -> torch.Tensor:
    """Return the activations [N, C] of photos, batch by batch."""
    batch = model.network.preprocess.batch
    return torch.cat([model.embed(batch(pixels[n : n + BATCH])) for n in range(0, len(pixels), BATCH)])


def table(title: str, columns: list[str], rows: list[list[Any]]) -> str:
    """Return a Markdown table; numbers have two places."""
    lines = [f"| {title} | {' | '.join(columns)} |", f"|---|{'---:|' * len(columns)}"]
    for name, *values in rows:
        lines.append(f"| {name} | {' | '.join(v if isinstance(v, str) else f'{v:.2f}' for v in values)} |")
    return "\n".join(lines) + "\n"


def draw(folder: Path) -> list[Path]:
    """Draw as many photos as the largest row needs, and return their paths."""
    options = DrawConfig(size=500)
    names = split_of(options).base
    for number in range(max(ADDED)):
        image, _ = picture(options, "train", names[number % len(names)], number)
        image.resize((500, 375)).save(folder / f"{number:03d}.jpg", quality=90)
    return photo_files.in_folder(folder, Account())


def random_activations(classes: int, per_class: int, dim: int) -> Activations:
    """Return random activations, float16; all classes have the same numbers, in other places."""
    numbers = np.random.RandomState(0).random((per_class, dim)).astype(np.float16)
    rows = np.empty((classes * per_class, dim), np.float16)
    for number in range(classes):
        rows[number * per_class : (number + 1) * per_class] = np.roll(numbers, number, axis=1)
    return Activations(rows, np.arange(len(rows)), np.arange(classes + 1) * per_class)


def random_model(backbone: str, method: str, train: Activations, resize: int, size: int, device: torch.device
                 ) -> Classifier:  # fmt: skip
    """Return a model with random weights, whose method keeps what it needs of these activations."""
    torch.manual_seed(0)
    classes = len(train.offsets) - 1
    means, learn = torch.from_numpy(train.means()), LearnConfig()
    network = build({"name": backbone, "num_classes": classes, "small_stem": False})
    phi = untrained_predictor(method, means, network, learn)
    with torch.no_grad():
        rows = phi.base_rows(means)
    sample = row_method(method).sample(train, device)
    posterior = random_posterior(method, means, train)
    cost = NUMBERS[METHODS[method].cost]
    maker = PredictedHead(method, phi, learn, rows, sample, cost, posterior=posterior).on(device)
    base = [Class(f"class {n} of the base", f"n{n:08d}") for n in range(classes)]
    preprocess = Preprocess(Preprocessing(resize=resize, size=size))
    return Classifier(Network(network, preprocess).on(device), maker, base, range(classes))


def random_posterior(method: str, means: torch.Tensor, train: Activations) -> Posterior | None:
    """Return densities of classes with these means [classes, dim], in coordinates of no meaning; None where the method
    has no densities."""
    share, (classes, dim) = posterior_share(method), means.shape
    if share is None:
        return None
    counts = torch.full((classes,), len(train.rows) / classes)
    parts = (torch.zeros(dim), torch.zeros(dim), torch.eye(dim), torch.ones(dim), means, counts)
    tensors = dict(zip(POSTERIOR_TENSORS, parts, strict=True))
    return Posterior.from_tensors(tensors, share, NUMBERS["plda_power"], NUMBERS["plda_temperature"])


def base_of(model: Classifier, train: Activations) -> Base:
    """Return what the compared methods use of the base classes."""
    maker = model.maker
    assert isinstance(maker, PredictedHead)
    head, rows = model.network.backbone.head, maker.base_rows
    return Base(train, rows, head.weight, head.bias, Path(), LearnConfig(), "max", NUMBERS)


if __name__ == "__main__":
    main()
