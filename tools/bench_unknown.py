"""Measure how well a model of photos alone tells photos of its classes from photos of other classes.

    python tools/bench_unknown.py --archive ILSVRC2012_img_train.tar --features activations.npz [--draws 10]

The archive is a tar of one tar per class. Half of its classes, by the hash of their names, are for choices; the tables
say which half they are of, and only the other half is reported. In each draw 20 classes are known and 20 are not. A
head is fitted to 5 or 20 photos of each known class, and chosen as ``dist-train create`` does; then 25 further photos
of each of the 40 classes are scored. The sign of a known photo is its probability, the energy of its scores (Liu et al.
2020), its Mahalanobis distance to the nearest class (Lee et al. 2018; one shrunken covariance of unit activations), or
its cosine to the nearest class mean; each is measured by the area under the ROC curve. The last table has the rule that
models use: an answer is sure where probability and familiarity both pass, at thresholds that were fitted to photos that
were left out, so that 95% of known photos pass.
"""

from __future__ import annotations

import argparse
import hashlib
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from bench_photos import mean_text
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from dist_train.classifier.embedding import embed
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.from_photos import without_classes
from dist_train.classifier.head import Head
from dist_train.classifier.heads.contract import Background, Sample
from dist_train.config import BackboneConfig
from dist_train.data.account import Account
from dist_train.distributed.pool import progress_bar
from dist_train.models.backbones import open_pretrained

CLASSES, SHOWN, FRESH = 20, (5, 20), 25
SHRINKAGE = 0.6  # of the covariance of the Mahalanobis distance; the best of 0.1, 0.3 and 0.6 on classes for choices
Features = Mapping[str, torch.Tensor]
"""Name of a class -> activations [photos, dim]."""
Sign = Callable[[torch.Tensor], torch.Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, help="needed where --features is not there yet")
    parser.add_argument("--features", type=Path, required=True, help=".npz of the activations; written if missing")
    parser.add_argument("--backbone", default="starter")
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args(arguments)
    if not args.features.is_file():
        np.savez(args.features, **{name: rows.numpy() for name, rows in _embed(args.archive, args.backbone).items()})
    with np.load(args.features) as arrays:
        features = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for half, classes in zip(("for choices", "reported"), halves(features), strict=True):
        results = {shown: [draw(features, classes, n, shown) for n in range(args.draws)] for shown in SHOWN}
        print(table(half, results), end="\n\n")


def _embed(archive: Path, backbone: str) -> dict[str, torch.Tensor]:
    """Return the activations of the first photos of each class."""
    model = without_classes(open_pretrained(BackboneConfig(source=backbone)))
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as outer:
        photos: dict[str, list[Path]] = {}
        for member in outer.getmembers():
            inner_file = outer.extractfile(member)
            assert inner_file is not None
            with tarfile.open(fileobj=inner_file) as inner:
                for entry in [entry for entry in inner.getmembers() if entry.isfile()][: max(SHOWN) + FRESH]:
                    path = Path(folder) / entry.name
                    file = inner.extractfile(entry)
                    assert file is not None
                    path.write_bytes(file.read())
                    photos.setdefault(Path(member.name).stem, []).append(path)
        with progress_bar(sum(map(len, photos.values())), "photos", "img", True) as bar:
            embedded = embed(model, photos, Account(), bar, pictures=False)
    return {name: own.activations for name, own in embedded.items()}


def halves(features: Features) -> tuple[list[str], list[str]]:
    """Return the classes for choices and the classes that are reported."""
    ranked = sorted(features, key=lambda name: hashlib.sha256(name.encode()).digest())
    return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]


def draw(features: Features, classes: Sequence[str], number: int, shown: int) -> dict[str, float]:
    """Return the figures of a draw, in percent."""
    ranked = sorted(classes, key=lambda name: hashlib.sha256(f"{number}:{name}".encode()).digest())
    known, others = ranked[:CLASSES], ranked[CLASSES : 2 * CLASSES]
    photos = [features[name][:shown] for name in known]
    fresh, strange = (torch.cat([features[name][max(SHOWN) :] for name in names]) for names in (known, others))
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([len(features[name]) - max(SHOWN) for name in known]))
    head, _ = FittedHeads().make((), photos)
    figures = {
        f"AUROC of the {name}": 100
        * roc_auc_score([1] * len(fresh) + [0] * len(strange), sign(torch.cat([fresh, strange])))
        for name, sign in signs(head, photos).items()
    }
    figures["right"] = _percent(head.scores(fresh).argmax(1) == labels)
    figures["probability that is said"] = 100 * float(head.probabilities(head.scores(fresh)).amax(1).mean())
    for rule in ("the probability's threshold", "the familiarity's threshold", "both"):
        figures[f"known photos that pass {rule}"] = _percent(passes(head, fresh)[rule])
        figures[f"other photos that pass {rule}"] = _percent(passes(head, strange)[rule])
    return figures


def signs(head: Head, photos: Sequence[torch.Tensor]) -> dict[str, Sign]:
    """Return the signs of a known photo, each larger for photos that look more like those of the classes."""
    sample = Sample.of(photos).unit()
    covariance = Background.of(sample).scatter / sample.freedom
    identity = torch.eye(len(covariance), dtype=torch.float64)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * covariance.trace() / len(covariance) * identity
    factor = torch.linalg.cholesky(torch.linalg.inv(shrunk))
    means = sample.means() @ factor
    return {
        "probability": lambda x: head.probabilities(head.scores(x)).amax(1),
        "energy": lambda x: head.scores(x).logsumexp(1),
        "Mahalanobis distance": lambda x: -torch.cdist(normalize(x.double(), dim=1) @ factor, means).amin(1),
        "cosine to the nearest class mean": head.nearness,
    }


def passes(head: Head, activations: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return which photos pass the model's thresholds, of the probability, of the familiarity, and of both."""
    probable = head.probabilities(head.scores(activations)).amax(1) >= head.doubt.threshold
    familiar = torch.tensor(head.doubt.familiarity(head.nearness(activations).numpy())) >= head.doubt.familiar
    return {
        "the probability's threshold": probable,
        "the familiarity's threshold": familiar,
        "both": probable & familiar,
    }


def table(half: str, results: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """Return a table in Markdown: means over draws, with 95% intervals of the mean (Student's t)."""
    draws = len(next(iter(results.values())))
    columns = " | ".join(f"{shown} photos a class" for shown in results)
    lines = [f"| classes {half}, {draws} draws (%) | {columns} |", "|---|" + "---:|" * len(results)]
    for name in next(iter(results.values()))[0]:
        cells = " | ".join(mean_text([figures[name] for figures in figures_of]) for figures_of in results.values())
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def _percent(values: torch.Tensor) -> float:
    return 100 * float(values.double().mean())


if __name__ == "__main__":
    main()
