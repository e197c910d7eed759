"""A classifier that learns a class from one photo: a trained network, its classes, and how these become a head."""

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
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.head import Answer, Class, Head, Prediction
from dist_train.classifier.heads.choice import balanced_accuracy
from dist_train.classifier.heads.contract import Background
from dist_train.classifier.maker import HeadMaker
from dist_train.classifier.model_folder import Saved
from dist_train.classifier.model_json import About, FittedMethod, check_tensors
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Photo, Preprocess
from dist_train.classifier.predicted import PredictedHead, untrained_predictor
from dist_train.data.images.photos import MAX_PIXELS
from dist_train.errors import UserError
from dist_train.models.backbones import Backbone, build
from dist_train.names import class_name
from dist_train.training.precision import exact_products

_SAME = 1e-4
"""Difference, as a share of its length, up to which an activation is of the same photo in another batch: rounding gives
2e-7, and saving a photo again at JPEG quality 95 at least 2e-2 (the starter, 32 photos)."""


class Classifier:
    """A trained network with classes that can be added from photos, without training.

    ``Classifier.load(folder)`` opens a model that ``dist-train adapt RUN --out folder`` has made; see docs/python.md.
    A classifier is not for several threads at once: give each a ``copy()``, which shares the network and costs nothing.

    Attributes:
        network: what training has made; it does not change with the classes.
        provenance: the record of the run that the network comes from.
    """

    def __init__(
        self,
        network: Network,
        maker: HeadMaker,
        base: Sequence[Class] = (),
        kept: Sequence[int] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a classifier of a run's classes, or of none yet; to open a model folder use ``load``.

        Args:
            network: maps photos to activations.
            maker: makes the head of the classes.
            base: the run's classes.
            kept: the number of each of these classes in the run, in increasing order.
            provenance: the record of where the network comes from.
        """
        self.network, self.provenance = network, dict(provenance or {})
        self._maker = maker
        self._base, self._kept = list(base), list(kept)
        self._added: list[tuple[Class, torch.Tensor]] = []  # each with the activations [k, dim] of its photos
        self._head: Head | None = None
        self._origin: tuple[Path, Saved] | None = None  # the folder that it was loaded from or saved to

    @property
    def maker(self) -> HeadMaker:
        """What makes the head of the classes."""
        return self._maker

    @property
    def method(self) -> str:
        """The name of the method: that of a run's predictor, or that of the head that was fitted to the photos."""
        if isinstance(self._maker, FittedHeads):
            self.head()  # which chooses it
        return self._maker.name

    @property
    def fitted(self) -> bool:
        """Whether the model is one of photos alone, whose head is fitted to all of them."""
        return self._maker.FITTED

    @property
    def rule(self) -> str:
        """How several photos of a class count in a model from a run: ``max`` takes the largest of their responses (the
        paper), ``mean`` a single row from their mean activation, ``rows`` the mean of their rows. φ+ makes a single row
        by any rule. "" in a model of photos alone, which is fitted to all photos together."""
        return self._maker.rule if isinstance(self._maker, PredictedHead) else ""

    @rule.setter
    def rule(self, rule: str) -> None:
        if not isinstance(self._maker, PredictedHead):
            raise UserError(f"rule {rule!r}: is of models from a run, and this model's head is fitted to its photos; "
                            f"leave it out")  # fmt: skip
        self._maker, self._head = replace(self._maker, rule=rule), None

    def choose_head(self, name: str = "auto") -> None:
        """Fit another head to the photos: mean, imprint, lda, probe, or the best of them (auto). See docs/photos.md.

        Raises:
            UserError: there is no such head, or the model comes from a run.
        """
        if not isinstance(self._maker, FittedHeads):
            raise UserError(f"--head {name}: is of models of photos alone; this model comes from a run, and its "
                            f"--method is chosen when it is made")  # fmt: skip
        self._maker, self._head = replace(self._maker, head=name, strength=None), None

    @property
    def classes(self) -> list[Class]:
        """All classes in the order of ``logits``: those of the run, then the added ones."""
        return [*self._base, *(entry for entry, _ in self._added)]

    @property
    def kept(self) -> tuple[int, ...]:
        """The numbers of the run's classes that have not been removed, in order."""
        return tuple(self._kept)

    @property
    def device(self) -> torch.device:
        """The device that computes."""
        return self.network.device

    def copy(self) -> Classifier:
        """Return a classifier of the same classes on the same network; a change of either leaves the other alone."""
        twin = Classifier(self.network, self._maker, self._base, self._kept, self.provenance)
        twin._added, twin._head, twin._origin = list(self._added), self._head, self._origin
        return twin

    # Classes.

    def add_class(self, name: str, images: Iterable[Photo] | Photo) -> None:
        """Add a class from one photo or more, in a single forward pass.

        Raises:
            UserError: the name is taken or not allowed, there are no photos, or a photo cannot be decoded; nothing is
                changed.
        """
        self.check_new(name)
        self.add_activations(name, self.activations(images, name))

    def add_activations(self, name: str, activations: torch.Tensor) -> None:
        """Add a class as ``add_class`` does, from the activations [k, dim] of its photos.

        Raises:
            UserError: the name is taken or not allowed, or the activations are not finite or of another shape; nothing
                is changed.
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
        """Remove a class by its name or wnid, whether it was added or came with the run.

        Raises:
            UserError: there is no such class, or it is the last.
        """
        position = self._position(name)
        if len(self.classes) == 1:
            raise UserError(f"class {name!r}: the last one cannot be removed")
        if position < len(self._base):
            del self._base[position], self._kept[position]
        else:
            del self._added[position - len(self._base)]
        self._head = None

    def rename_class(self, name: str, new: str) -> None:
        """Rename a class, given by its name or wnid.

        Raises:
            UserError: there is no such class, or the new name is taken or not allowed.
        """
        position = self._position(name)
        if new != self.classes[position].name:
            new = self.check_new(new)
        if position < len(self._base):
            self._base[position] = replace(self._base[position], name=new)
        else:
            entry, activations = self._added[position - len(self._base)]
            self._added[position - len(self._base)] = (replace(entry, name=new), activations)

    def check_new(self, name: str) -> str:
        """Return the name of a new class as it is kept (see ``dist_train.names.class_name``).

        Raises:
            UserError: the name is not allowed, or is the name or wnid of a class.
        """
        name = class_name(str(name))
        if any(name in (entry.name, entry.wnid) for entry in self.classes):
            raise UserError(f"class {name!r}: exists already; take another name, or remove or rename that one first")
        return name

    def _position(self, name: str) -> int:
        name = unicodedata.normalize("NFC", str(name))
        for position, entry in enumerate(self.classes):
            if name and name in (entry.name, entry.wnid):
                return position
        raise UserError(f"class {name!r}: there is none among the {len(self.classes)}; list them first")

    # Prediction.

    def predict(self, images: Iterable[Photo] | Photo, topk: int = 5) -> list[Answer]:
        """Return for each photo the ``topk`` classes with the highest scores, the best first.

        Raises:
            UserError: a photo cannot be decoded, or ``topk`` is below 1.
        """
        return self.answers(self.activations(images), topk)

    def answers(self, activations: torch.Tensor, topk: int = 5) -> list[Answer]:
        """Return what ``predict`` does, from activations [B, dim].

        Raises:
            UserError: the model's scores are not finite, or ``topk`` is below 1.
        """
        if topk < 1:
            raise UserError(f"topk {topk}: must be >= 1")
        classes = self.classes
        best = self.scores(activations).softmax(1).topk(min(topk, len(classes)))
        return [
            Answer(
                tuple(Prediction(classes[n].name, classes[n].wnid, p) for n, p in zip(positions, shares, strict=True))
            )
            for positions, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def logits(self, images: Iterable[Photo] | Photo) -> torch.Tensor:
        """Return the scores of all ``classes``: float32 [photos, classes].

        Raises:
            UserError: a photo cannot be decoded.
        """
        return self.scores(self.activations(images))

    @exact_products()
    @torch.no_grad()
    def scores(self, activations: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, classes] of activations [B, dim].

        Raises:
            UserError: the scores are not finite.
        """
        scores = self.head().scores(activations.to(self.device))
        if not bool(scores.isfinite().all()):
            raise UserError("the model's scores are not finite (NaN or infinite): its weights are; make it again")
        return scores

    def activations(self, images: Iterable[Photo] | Photo, name: str = "") -> torch.Tensor:
        """Return the activations a(x) of photos: float32 [photos, dim].

        Args:
            images: a photo or several.
            name: the name of their class, for errors.

        Raises:
            UserError: a photo cannot be decoded.
        """
        if isinstance(images, (str, Path, bytes)) or hasattr(images, "shape") or not isinstance(images, Iterable):
            images = [images]  # type: ignore[list-item]
        label = f"class {name!r}, photo" if name else "photo"
        pixels = (self.pixels(image, f"{label} {number}") for number, image in enumerate(images, 1))
        rows = [self.embed(self.network.preprocess.batch(part)) for part in batches(pixels, self.network.batch)]
        return torch.cat(rows) if rows else torch.empty(0, self.network.backbone.dim, device=self.device)

    def pixels(self, photo: Photo, name: str = "image", max_pixels: int = MAX_PIXELS) -> torch.Tensor:
        """Return a photo as this model takes it, upright or as stored: uint8 [3, height, width]; see ``photos.load``.

        Raises:
            UserError: the photo cannot be decoded, or is larger than ``max_pixels``.
        """
        return photos.load(photo, name, max_pixels, self.network.preprocess.orientation)

    @exact_products()
    @torch.no_grad()
    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Return the activations [B, dim] of preprocessed images [B, 3, size, size]."""
        return self.network.backbone.features(images.contiguous(memory_format=torch.channels_last)).float()

    @exact_products()
    @torch.no_grad()
    def head(self) -> Head:
        """Return the classifier that follows from the classes as they are; it is built on the first call after a
        change of them."""
        if self._head is None:
            self._head, self._maker = self._maker.make(self._kept, [activations for _, activations in self._added])
        return self._head

    @exact_products()
    @torch.no_grad()
    def base_accuracy(self, activations: torch.Tensor, labels: Sequence[int]) -> list[float]:
        """Return what the added classes did to the accuracy on the run's classes, in percent: with the run's classes
        alone, then with the first added class, with the first two, and so on: [1 + added classes].

        Args:
            activations: [N, dim] of images that were not trained on.
            labels: the position in ``classes`` of each image's class, which must be a class of the run.

        Raises:
            UserError: the model does not come from a run.
        """
        if not isinstance(self._maker, PredictedHead):
            raise UserError("the model has no classes of a run; its own estimate is that of held-out photos")
        added = [activations for _, activations in self._added]
        places = torch.as_tensor(labels, device=self.device)
        return self._maker.base_accuracy(self._kept, added, activations.to(self.device), places)

    def accuracy(self, activations: torch.Tensor, labels: Sequence[int]) -> tuple[float, float]:
        """Return the percentage of photos that are classified correctly, the mean over their classes, and the half
        width of its 95% interval in points.

        Args:
            activations: [N, dim] of photos that the model does not know.
            labels: the position in ``classes`` of each photo's class.
        """
        places = torch.as_tensor(labels, device=self.device)
        return balanced_accuracy(self.scores(activations).argmax(1) == places, places)

    # Files.

    def classes_with(self, activations: torch.Tensor) -> list[str | None]:
        """Return for each activation [B, dim] the added class that has a photo with the same activation; else None."""
        rows = activations.to(self.device).double()
        names: list[str | None] = [None] * len(rows)
        for entry, own in self._added:
            near = torch.cdist(rows, own.double()).amin(1) <= _SAME * rows.norm(dim=1)
            names = [entry.name if here else name for here, name in zip(near.tolist(), names, strict=True)]
        return names

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, or replace the model there in a single step: a process that reads meanwhile
        finds the old model or the new one.

        Raises:
            UserError: the model was loaded from this folder, and another process has changed it since, or is changing
                or serving it.
            OSError: the model cannot be written; what was there is untouched.
        """
        folder, head = Path(path).resolve(), self.head()
        before = self._origin[1] if self._origin and self._origin[0] == folder else None
        added = [activations for _, activations in self._added]
        fitted = {"rows": head.rows, "offset": head.offset} if self._maker.FITTED else {}
        saved = model_folder.write(
            Path(path),
            {**self.about(), "base_rows": self._kept},
            lambda: {
                **{f"backbone.{key}": tensor for key, tensor in self.network.backbone.state_dict().items()},
                **self._maker.tensors(),
            },
            {"activations": torch.cat(added) if added else torch.empty(0, self.network.backbone.dim), **fitted},
            before,
        )
        self._origin = folder, saved

    def about(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON has it: what a model folder and every export say of the model."""
        head, preprocess = self.head(), self.network.preprocess
        spec, method = preprocess.spec, self._maker.about()
        if self._maker.FITTED:
            method |= {"unit": head.query_scale is not None, "estimates": [asdict(one) for one in head.estimates]}
        return {
            "method": method,
            "backbone": self.network.backbone.architecture,
            "preprocessing": {**asdict(spec), "interpolation": f"{spec.interpolation}, antialiased", "crop": "centre",
                              "orientation": preprocess.orientation},
            "classes": [asdict(entry) for entry in self.classes],
            "provenance": self.provenance,
        }  # fmt: skip

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None) -> Classifier:
        """Open a model folder.

        Args:
            path: the folder.
            device: "cpu", "cuda", ...; None: the GPU where there is one.

        Raises:
            UserError: there is no model, it is of another version of the format, or a file is missing or changed.
        """
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            about, parts, saved = model_folder.read(Path(path), device)
            check_tensors(Path(path), about, parts)
            model = cls._assemble(about, parts["network"], parts["added"], device)
            model._origin = Path(path).resolve(), saved
            return model
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: model.json and its files do not fit together ({text}); make it again") from None

    @classmethod
    def _assemble(
        cls, about: About, tensors: dict[str, torch.Tensor], added: dict[str, torch.Tensor], device: torch.device
    ) -> Classifier:
        rule = about.preprocessing.orientation
        backbone = build(about.backbone.model_dump(exclude_none=True))
        backbone.load_state_dict(_under("backbone.", tensors))
        preprocess = Preprocess(about.preprocessing.spec, "stored" if rule == "stored" else "exif")
        network = Network(backbone, preprocess).on(device)
        maker = _maker(about, backbone, tensors)
        model = cls(network, maker.on(device), about.kept, about.base_rows, about.provenance)
        split = torch.split(added["activations"], [entry.photos for entry in about.added]) if about.added else ()
        model._added = list(zip(about.added, split, strict=True))
        if isinstance(about.method, FittedMethod):
            owner = torch.arange(len(about.added), device=device)
            scale = 1.0 if about.method.unit else None
            model._head = Head(added["rows"], owner, added["offset"], scale, about.method.to_estimates())
        return model


def _maker(about: About, backbone: Backbone, tensors: Mapping[str, torch.Tensor]) -> HeadMaker:
    """Return what makes the head of a model, from its ``model.json`` and the tensors of its network."""
    method = about.method
    if isinstance(method, FittedMethod):
        background = None
        if "background.scatter" in tensors:
            freedom = int(tensors["background.freedom"])
            background = Background(tensors["background.scatter"].double(), freedom)
        return FittedHeads(method.head, method.strength, background)
    phi = untrained_predictor(method.name, tensors["base_rows"], backbone, method.learn)
    phi.load_state_dict(_under("predictor.", tensors))
    sample = tensors["sample.activations"].float(), tensors["sample.labels"]
    return PredictedHead(method.name, phi, method.learn, tensors["base_rows"], sample, method.calibration_cost,
                         method.rule)  # fmt: skip


def batches(items: Iterable[Any], size: int = 32) -> Iterator[list[Any]]:
    """Yield lists of at most ``size`` items, so that a folder of photos need not lie in memory."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors whose names begin with a prefix, by the rest of their names."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
