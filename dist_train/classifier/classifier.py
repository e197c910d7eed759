"""A classifier that learns a class from one photo: the trained network, its predictor, and a list of classes."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from dist_train.classifier import model_folder, photos
from dist_train.classifier.model_folder import Saved
from dist_train.classifier.model_json import About, check_tensors
from dist_train.classifier.network import RULES, Class, Head, Network, Prediction, build_untrained
from dist_train.classifier.photos import Photo, Preprocess
from dist_train.data.images.photos import MAX_PIXELS
from dist_train.data.loading.preprocessing import MEAN, STD
from dist_train.errors import UserError
from dist_train.fewshot.calibration import Calibration
from dist_train.names import class_name
from dist_train.training.precision import exact_products


class Classifier:
    """A trained network with classes that can be added from photos, without training.

    ``Classifier.load(folder)`` opens what ``dist-train adapt RUN --out folder`` has made. See docs/python.md.

    Not for several threads at once; copies by ``copy()`` share the network and cost nothing.
    """

    def __init__(
        self,
        network: Network,
        base: Sequence[Class],
        kept: Sequence[int],
        rule: str = "max",
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Of ``network``'s base rows, those at ``kept`` are the classes ``base``. Use ``load`` instead."""
        self.network, self.provenance = network, dict(provenance or {})
        self._base, self._kept = list(base), list(kept)
        self._added: list[tuple[Class, torch.Tensor]] = []  # with the activations [k, dim] of its photos
        self._head: Head | None = None
        self._calibration: tuple[tuple[int, ...], Calibration | None, torch.Tensor] | None = None
        self._origin: tuple[Path, Saved] | None = None  # the folder that it was loaded from or saved to
        self.rule = rule

    @property
    def rule(self) -> str:
        """How several photos of a class count: ``max``, the largest of their responses (the paper), ``mean``, one
        row from their mean activation, ``rows``, the mean of their rows. φ+ has one row by any rule."""
        return self._rule

    @rule.setter
    def rule(self, rule: str) -> None:
        if rule not in RULES:
            raise UserError(f"rule {rule!r}: give one of {', '.join(RULES)}")
        self._rule, self._head = rule, None

    @property
    def classes(self) -> list[Class]:
        """In the order of ``logits``: those of the run, then those that were added."""
        return [*self._base, *(one for one, _ in self._added)]

    @property
    def kept(self) -> tuple[int, ...]:
        """Which of the run's base classes are left: their numbers, in order."""
        return tuple(self._kept)

    @property
    def device(self) -> torch.device:
        return self.network.base_rows.device

    def copy(self) -> Classifier:
        """The same classes on the same network; a change of one leaves the other as it is."""
        made = Classifier(self.network, self._base, self._kept, self.rule, self.provenance)
        made._added, made._head, made._calibration = list(self._added), self._head, self._calibration
        made._origin = self._origin
        return made

    # Classes.

    def add_class(self, name: str, images: Iterable[Photo] | Photo) -> None:
        """Add a class from one photo or more, in one forward pass.

        Raises:
            UserError: there is such a class, there are no photos, or one cannot be decoded; nothing is changed.
        """
        self.check_new(name)
        self.add_activations(name, self.activations(images, name))

    def add_activations(self, name: str, activations: torch.Tensor) -> None:
        """``add_class`` from what ``activations`` has made of its photos, [k, dim].

        Raises:
            UserError: as ``add_class``, or these are no activations.
        """
        name = self.check_new(name)
        if not len(activations):
            raise UserError(f"class {name!r}: no photos; give at least one")
        dim = self.network.backbone.dim
        if activations.ndim != 2 or activations.shape[1] != dim or not bool(activations.isfinite().all()):
            raise UserError(f"class {name!r}: shape {list(activations.shape)}; give finite activations [k, {dim}]")
        day = time.strftime("%Y-%m-%d", time.gmtime())
        self._added.append((Class(name, photos=len(activations), added=day), activations.float().to(self.device)))
        self._head = None

    def remove_class(self, name: str) -> None:
        """Remove a class, by its name or wnid: one that was added, or one of the run's.

        Raises:
            UserError: there is none, or it is the last one.
        """
        place = self._find(name)
        if len(self.classes) == 1:
            raise UserError(f"class {name!r}: the last one cannot be removed")
        if place < len(self._base):
            del self._base[place], self._kept[place]
        else:
            del self._added[place - len(self._base)]
        self._head = None

    def rename_class(self, name: str, new: str) -> None:
        """Call a class, given by its name or wnid, something else.

        Raises:
            UserError: there is none, or there is one of the new name.
        """
        place = self._find(name)
        if new != self.classes[place].name:
            new = self.check_new(new)
        if place < len(self._base):
            self._base[place] = replace(self._base[place], name=new)
        else:
            one, activations = self._added[place - len(self._base)]
            self._added[place - len(self._base)] = (replace(one, name=new), activations)

    def check_new(self, name: str) -> str:
        """The name as it is kept (``data.names.class_name``).

        Raises:
            UserError: a class cannot get this name.
        """
        name = class_name(str(name))
        if any(name in (one.name, one.wnid) for one in self.classes):
            raise UserError(f"class {name!r}: exists already; take another name, or remove or rename that one first")
        return name

    def _find(self, name: str) -> int:
        name = unicodedata.normalize("NFC", str(name))
        found = [n for n, one in enumerate(self.classes) if name and name in (one.name, one.wnid)]
        if not found:
            raise UserError(f"class {name!r}: there is none among the {len(self.classes)}; list them first")
        return found[0]

    # Prediction.

    def predict(self, images: Iterable[Photo] | Photo, topk: int = 5) -> list[list[Prediction]]:
        """For each photo the ``topk`` classes with the highest scores, the best first.

        Raises:
            UserError: a photo cannot be decoded.
        """
        return self.answers(self.activations(images), topk)

    def answers(self, activations: torch.Tensor, topk: int = 5) -> list[list[Prediction]]:
        """``predict`` from activations [B, dim]."""
        if topk < 1:
            raise UserError(f"topk {topk}: must be >= 1")
        classes = self.classes
        best = self.scores(activations).softmax(1).topk(min(topk, len(classes)))
        return [
            [Prediction(classes[n].name, classes[n].wnid, p) for n, p in zip(places, shares, strict=True)]
            for places, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def logits(self, images: Iterable[Photo] | Photo) -> torch.Tensor:
        """Scores of all ``classes``: float32 [photos, classes].

        Raises:
            UserError: a photo cannot be decoded.
        """
        return self.scores(self.activations(images))

    @exact_products()
    @torch.no_grad()
    def scores(self, activations: torch.Tensor) -> torch.Tensor:
        """``logits`` from activations [B, dim].

        Raises:
            UserError: they are no numbers.
        """
        scores = self.head().scores(self.network.phi.query(activations.to(self.device)))
        if not bool(scores.isfinite().all()):
            raise UserError("the model's scores are not finite (NaN or infinite): its weights are; make it again")
        return scores

    def activations(self, images: Iterable[Photo] | Photo, name: str = "") -> torch.Tensor:
        """a(x) of photos: float32 [photos, dim].

        Args:
            name: of their class, for errors.

        Raises:
            UserError: a photo cannot be decoded.
        """
        if isinstance(images, (str, Path, bytes)) or hasattr(images, "shape") or not isinstance(images, Iterable):
            images = [images]  # type: ignore[list-item]
        label = f"class {name!r}, photo" if name else "photo"
        pixels = (self.pixels(image, f"{label} {number}") for number, image in enumerate(images, 1))
        found = [self.embed(self.network.preprocess.batch(part)) for part in batches(pixels, self.network.batch)]
        return torch.cat(found) if found else self.network.base_rows.new_empty(0, self.network.backbone.dim)

    def pixels(self, photo: Photo, name: str = "image", max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """A photo as this model takes it, upright or as stored: uint8 [3, height, width]. See ``photos.load``.

        Raises:
            UserError: it cannot be decoded, or is larger than ``max_pixels``.
        """
        return photos.load(photo, name, max_pixels, self.network.preprocess.orientation)

    @exact_products()
    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Preprocessed images [B, 3, size, size] -> activations [B, dim]."""
        return self.network.backbone.features(images.contiguous(memory_format=torch.channels_last)).float()

    @exact_products()
    @torch.no_grad()
    def head(self) -> Head:
        """The classifier that follows from the classes as they are; made when it is first asked for."""
        if self._head is None:
            base, *added = self._rows()
            counts = [*[1] * len(base), *map(len, added)]
            owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(self.device)
            offset = torch.zeros(len(counts), device=self.device)
            calibrate, query = self._calibrate(base)
            if calibrate and added:
                largest = torch.stack([(query @ rows.T).amax(1) for rows in added]).amax(0)
                offset[len(base) :] = calibrate.number(largest, len(added))
            self._head = Head(torch.cat([base, *added]), owner, offset)
        return self._head

    @exact_products()
    @torch.no_grad()
    def base_accuracy(self, activations: torch.Tensor, labels: Sequence[int]) -> list[float]:
        """What additions did to the classes that were there: the share, in percent, of images that are right with
        the run's classes alone, then with the first class that was added, with the first two, ...

        Args:
            activations: [N, dim] of images that were not trained on.
            labels: of each, the place of its class in ``classes``; one of the run's.
        """
        query = self.network.phi.query
        base, *added = self._rows()
        calibrate, calibrating = self._calibrate(base)
        # Pairs of what an image's own class scores, where that is the highest, and its query.
        asked = [_right(query(activations.to(self.device)), base, torch.as_tensor(labels, device=self.device))]
        if calibrate:
            asked.append((calibrate.own, calibrating))
        largest = [torch.full_like(own, -torch.inf) for own, _ in asked]
        kept = [len(asked[0][0])]
        for number, rows in enumerate(added, 1):
            largest = [torch.maximum(most, (queries @ rows.T).amax(1))
                       for most, (_, queries) in zip(largest, asked, strict=True)]  # fmt: skip
            offset = calibrate.number(largest[1], number) if calibrate else 0.0
            kept.append(int((asked[0][0] >= largest[0] + offset).sum()))
        return [100 * count / len(labels) for count in kept]

    def _rows(self) -> list[torch.Tensor]:
        """The rows of the run's classes together, then of each that was added."""
        added: list[torch.Tensor] = [activations for _, activations in self._added]
        alike: dict[int, list[int]] = {}
        for number, activations in enumerate(added):
            alike.setdefault(len(activations), []).append(number)
        for numbers in alike.values():  # one pass for all classes of as many photos
            rows = self.network.phi.novel_rows(torch.stack([added[n] for n in numbers]), self.rule)
            for number, own in zip(numbers, rows, strict=True):
                added[number] = own
        return [self.network.base_rows[self._kept], *added]

    def _calibrate(self, base: torch.Tensor) -> tuple[Calibration | None, torch.Tensor]:
        """Of the run's classes that are left, whose rows are ``base``, and the queries of its images; None where the
        method has none. Kept, as it takes a second and does not change with the classes that are added."""
        if self._calibration is None or self._calibration[0] != self.kept:
            images, labels = self.network.sample
            query = self.network.phi.query
            places = labels.new_full((len(self.network.base_rows),), -1)
            places[self._kept] = torch.arange(len(self._kept), device=self.device)
            made = None
            if len(images):  # those of a class that was removed are right for none
                made = Calibration(images, places[labels], lambda x: query(x) @ base.T, self.network.cost)
            self._calibration = self.kept, made, query(made.images) if made else images
        return self._calibration[1:]

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, or replace the one there; a process that reads it meanwhile finds the one
        before or this one.

        Raises:
            UserError: the model was loaded from this folder, and someone else has changed it since, or is changing or
                serving it.
            OSError: it cannot be written; what was there is untouched.
        """
        folder, network = Path(path).resolve(), self.network
        before = self._origin[1] if self._origin and self._origin[0] == folder else None
        added = [activations for _, activations in self._added]
        saved = model_folder.write(
            Path(path),
            {**self.about(), "base_rows": self._kept},
            lambda: {
                **{f"backbone.{key}": tensor for key, tensor in network.backbone.state_dict().items()},
                **{f"predictor.{key}": tensor for key, tensor in network.phi.state_dict().items()},
                "base_rows": network.base_rows,
                "sample.activations": network.sample[0].half(),
                "sample.labels": network.sample[1],
            },
            {"activations": torch.cat(added) if added else network.base_rows[:0]},
            before,
        )
        self._origin = folder, saved

    def about(self) -> dict[str, Any]:
        """All but the tensors, as JSON has it: what a model folder and every export say of the model."""
        network, preprocess = self.network, self.network.preprocess
        return {
            "method": {"name": network.method, "rule": self.rule, "calibration_cost": network.cost,
                       "learn": asdict(network.learn)},
            "backbone": network.backbone.architecture,
            "preprocessing": {"resize": preprocess.resize, "size": preprocess.size, "mean": MEAN, "std": STD,
                              "interpolation": "bilinear, antialiased", "crop": "centre",
                              "orientation": preprocess.orientation},
            "classes": [asdict(one) for one in self.classes],
            "provenance": self.provenance,
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Classifier:
        """Open a model folder.

        Args:
            device: "cpu", "cuda", ...; None: the GPU where there is one.

        Raises:
            UserError: no model there, of another version, or a file is missing or changed.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            about, parts, saved = model_folder.read(Path(path), device)
            check_tensors(Path(path), about, parts)
            made = cls._made(about, parts["network"], parts["added"]["activations"], device)
            made._origin = Path(path).resolve(), saved
            return made
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: model.json and its files do not fit together ({text}); make it again") from None

    @classmethod
    def _made(cls, about: About, tensors: dict[str, torch.Tensor], added: torch.Tensor,
              device: torch.device) -> Classifier:  # fmt: skip
        method, size = about.method, about.preprocessing
        base_rows, learn = tensors["base_rows"], method.learn
        backbone, phi = build_untrained(about.backbone.model_dump(), method.name, base_rows, learn)
        backbone.load_state_dict(_under("backbone.", tensors))
        phi.load_state_dict(_under("predictor.", tensors))
        sample = tensors["sample.activations"].float(), tensors["sample.labels"]
        preprocess = Preprocess(size.resize, size.size, "stored" if size.orientation == "stored" else "exif")
        network = Network(backbone, method.name, phi, learn, base_rows, sample, method.calibration_cost, preprocess).on(
            device
        )
        made = cls(network, about.kept, about.base_rows, method.rule, about.provenance)
        split = torch.split(added, [one.photos for one in about.added]) if about.added else ()
        made._added = list(zip(about.added, split, strict=True))
        return made


def batches(items: Iterable[Any], size: int = 32) -> Iterator[list[Any]]:
    """At most ``size`` at a time, so that a folder of photos does not lie in memory."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


def _right(queries: torch.Tensor, rows: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the queries that are right by these rows, the score and the query."""
    scores = queries @ rows.T
    right = scores.argmax(1) == labels
    return scores[right].amax(1), queries[right]


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
