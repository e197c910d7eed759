"""A classifier that learns a class from one photo: a trained network, its classes, and how these become a head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dist_train.classifier import model_folder, photos, stored
from dist_train.classifier.answer import Answer, Class, answers_of, check_finite, checked_confidence, checked_topk
from dist_train.classifier.class_list import ClassList
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.head import Head
from dist_train.classifier.history import History
from dist_train.classifier.kept import Member, NewPhoto
from dist_train.classifier.maker import HeadMaker, check_kind
from dist_train.classifier.model_folder import Saved
from dist_train.classifier.model_json import Deed, check_added, check_network
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Photo
from dist_train.classifier.predicted import PredictedHead
from dist_train.classifier.reading import Source, answered, batches, listed, sources
from dist_train.classifier.stored import State
from dist_train.data.images.photos import MAX_PIXELS
from dist_train.errors import UserError
from dist_train.training.precision import exact_products


class Classifier(ClassList):
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
        none = torch.empty(0, network.backbone.dim, device=network.device)
        self._state = State(
            tuple(Member(entry.name, none, (), entry.wnid, "", number)
                  for entry, number in zip(base, kept, strict=True)), maker,
        )  # fmt: skip
        self._before = self._state  # the changes that are not saved
        self._history = History()
        self._keeps_pictures, self._new_pictures = True, dict[str, bytes]()  # by id, until they are saved
        self._origin: tuple[Path, Saved] | None = None  # the folder that it was loaded from or saved to
        self._min_confidence: float | None = None

    @property
    def method(self) -> str:
        """The name of the method: that of a run's predictor, or that of the head that was fitted to the photos."""
        if isinstance(self.maker, FittedHeads):
            self.head()  # which chooses it
        return self.maker.name

    @property
    def fitted(self) -> bool:
        """Whether the model is one of photos alone, whose head is fitted to all of them."""
        return self.maker.FITTED

    @property
    def rule(self) -> str:
        """How several photos of a class count in a model from a run: ``max`` takes the largest of their responses (the
        paper), ``mean`` a single row from their mean activation, ``rows`` the mean of their rows. φ+ makes a single row
        by any rule. "" in a model of photos alone, which is fitted to all photos together."""
        return self.maker.rule if isinstance(self.maker, PredictedHead) else ""

    @rule.setter
    def rule(self, rule: str) -> None:
        check_kind(self.fitted, rule=rule)
        assert isinstance(self.maker, PredictedHead)
        if rule != self.maker.rule:
            self._change(Deed(kind="rule", name=rule), self._members, replace(self.maker, rule=rule))

    def choose_head(self, name: str = "auto") -> None:
        """Fit another head to the photos: mean, imprint, lda, probe, or the best of them (auto). See docs/photos.md.

        Raises:
            UserError: there is no such head, or the model comes from a run.
        """
        check_kind(self.fitted, head=name)
        assert isinstance(self.maker, FittedHeads)
        maker = replace(self.maker, head=name, strength=None)
        self._change(Deed(kind="head", name=name), self._members, maker)

    @property
    def prior(self) -> str:
        """How frequent the classes of a model of photos alone are taken to be: ``equal``, all the same, or ``photos``,
        each as its photos among all photos of the model. "" in a model from a run. Another can be set."""
        return self.maker.prior if isinstance(self.maker, FittedHeads) else ""

    @prior.setter
    def prior(self, prior: str) -> None:
        check_kind(self.fitted, prior=prior)
        assert isinstance(self.maker, FittedHeads)
        if prior != self.maker.prior:
            self._change(Deed(kind="prior", name=prior), self._members, replace(self.maker, prior=prior))

    def copy(self) -> Classifier:
        """Return a classifier of the same classes on the same network; a change of either leaves the other alone."""
        twin = Classifier(self.network, self.maker, provenance=self.provenance)
        twin._state, twin._before, twin._history = self._state, self._before, self._history
        twin._keeps_pictures, twin._new_pictures = self._keeps_pictures, dict(self._new_pictures)
        twin._origin, twin._min_confidence = self._origin, self._min_confidence
        return twin

    # Classes.

    def add_class(self, name: str, images: Iterable[Photo] | Photo) -> None:
        """Add a class from one photo or more, in a single forward pass.

        Raises:
            UserError: the name is taken or not allowed, there are no photos, or a photo cannot be decoded or is given
                twice; nothing is changed.
        """
        self.check_new(name)
        self.add_activations(name, *self.look(images, name))

    def add_photos(self, name: str, images: Iterable[Photo] | Photo) -> None:
        """Give further photos to a class, by its name or wnid, whether it was added or came with the run.

        Raises:
            UserError: there is no such class, there are no photos, or a photo cannot be decoded or is in the class
                already; nothing is changed.
        """
        self._position(name)
        self.add_photo_activations(name, *self.look(images, name))

    # Prediction.

    def predict(self, images: Iterable[Photo] | Photo, topk: int = 5) -> list[Answer]:
        """Return for each photo the ``topk`` classes with the highest scores, the best first.

        Args:
            images: a photo or several; a folder stands for the photos in it and below it.
            topk: classes to name.

        Returns:
            For each photo its answer, or why there is none: a photo that cannot be decoded has a ``fault``.

        Raises:
            UserError: the model's scores are not finite.
            WrongValue: ``topk`` is not a whole number, or below 1.
        """
        return list(self.stream(sources(images), topk))

    def stream(self, photos: Iterable[Source], topk: int = 5) -> Iterator[Answer]:
        """Yield the answer of each photo in order, as ``predict`` does; few photos are in memory at a time."""
        topk = checked_topk(topk)

        def answer(images: list[torch.Tensor]) -> list[Answer]:
            return self.answers(self.embed(torch.cat(images).to(self.device)), topk)

        return answered(photos, self._prepared, answer, self.network.pace)

    def _prepared(self, photo: Photo, name: str) -> torch.Tensor:
        """Return a photo as the network takes it, [1, 3, size, size], on the CPU; errors call it ``name``."""
        return self.network.preprocess.batch([self.pixels(photo, name)]).cpu()

    @exact_products()
    @torch.no_grad()
    def answers(self, activations: torch.Tensor, topk: int = 5, scores: torch.Tensor | None = None) -> list[Answer]:
        """Return what ``predict`` does, from activations [B, dim].

        Args:
            activations: of the photos.
            topk: classes to name.
            scores: what ``scores`` returns for these activations, where that is there already.

        Raises:
            UserError: the model's scores are not finite.
            WrongValue: ``topk`` is not a whole number, or below 1.
        """
        topk = checked_topk(topk)
        head = self.head()
        scores = self.scores(activations) if scores is None else scores
        nearness = head.nearness(activations.to(self.device)).cpu().numpy()
        return answers_of(head.probabilities(scores).cpu().numpy(), nearness, self.classes, head.doubt,
                          topk=topk, min_confidence=self._min_confidence)  # fmt: skip

    @property
    def threshold(self) -> float:
        """The probability, from 0 to 1, below which an answer is not sure: ``min_confidence``, or where that is None
        the model's own. It follows from photos that the head was not fitted on, of which 95% pass this threshold and
        that of the familiarity together; 0 where there are none."""
        return self.head().doubt.threshold if self._min_confidence is None else self._min_confidence

    @property
    def min_confidence(self) -> float | None:
        """The probability, from 0 to 1, from which on an answer is sure, however familiar its photo looks; None, as at
        first: by the model's own thresholds. A model folder does not keep it. Anything else raises ``WrongValue``."""
        return self._min_confidence

    @min_confidence.setter
    def min_confidence(self, value: float | None) -> None:
        self._min_confidence = checked_confidence(value)

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
        check_finite(bool(scores.isfinite().all()))
        return scores

    def activations(self, images: Iterable[Photo] | Photo, name: str = "") -> torch.Tensor:
        """Return the activations a(x) of photos: float32 [photos, dim].

        Args:
            images: a photo or several.
            name: the name of their class, for errors.

        Raises:
            UserError: a photo cannot be decoded.
        """
        rows = [self.embed(inputs) for inputs, _ in self._decoded(images, name, keep=False)]
        return torch.cat(rows) if rows else torch.empty(0, self.network.backbone.dim, device=self.device)

    def look(self, images: Iterable[Photo] | Photo, name: str = "") -> tuple[torch.Tensor, list[NewPhoto]]:
        """Return what ``activations`` does, and what a class keeps of each photo."""
        rows = [torch.empty(0, self.network.backbone.dim, device=self.device)]
        photos = []
        for inputs, new in self._decoded(images, name, keep=True):
            rows.append(self.embed(inputs))
            photos += new
        return torch.cat(rows), photos

    def _decoded(
        self, images: Iterable[Photo] | Photo, name: str, keep: bool
    ) -> Iterator[tuple[torch.Tensor, list[NewPhoto]]]:
        """Yield batches of photos as the network takes them, and, for those to ``keep``, what a class keeps of each."""
        label = f"class {name!r}, photo" if name else "photo"
        numbered = batches(enumerate(listed(images), 1), self.network.batch)
        for batch in numbered:
            pixels = [self.pixels(image, f"{label} {number}") for number, image in batch]
            inputs = self.network.preprocess.batch(pixels)
            names = [str(image) if isinstance(image, (str, Path)) else "" for _, image in batch]
            yield inputs, [self.new_photo(*one) for one in zip(inputs, pixels, names, strict=True)] if keep else []

    def new_photo(self, image: torch.Tensor, pixels: torch.Tensor | None, name: str | Path = "") -> NewPhoto:
        """Return what a class keeps of a photo.

        Args:
            image: the photo as the network takes it.
            pixels: the whole photo, uint8 [3, height, width]; None: without a picture.
            name: the path or name of its file.
        """
        return NewPhoto.of(image, pixels if self._keeps_pictures else None, name)

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
        return self.network.activations(images)

    @exact_products()
    @torch.no_grad()
    def head(self) -> Head:
        """Return the classifier that follows from the classes as they are; it is built on the first call after a
        change of them."""
        if self._state.head is None:
            head, maker = self.maker.make(self.kept, [member.activations for member in self._members])
            self._state = State(self._members, maker, head)
        return self._state.head  # type: ignore[return-value]

    @exact_products()
    @torch.no_grad()
    def base_accuracy(
        self, activations: torch.Tensor, labels: Sequence[int], before: Classifier | None = None
    ) -> list[float]:
        """Return the accuracy on the run's classes, in percent: as it was ``before``, with the first class that got
        photos since, with the first two, and so on to what it is.

        Args:
            activations: [N, dim] of images that were not trained on.
            labels: the position in ``classes`` of each image's class, which must be a class of the run.
            before: the model before photos were added to classes or in new classes, of the same classes of the run;
                None: without any photos.

        Raises:
            UserError: the model does not come from a run.
        """
        if not isinstance(self.maker, PredictedHead):
            raise UserError("the model has no classes of a run; its own estimate is that of held-out photos")
        then = {member.name: member.activations for member in before._members} if before else {}
        after = [member.activations for member in self._members]
        changes = [then.get(member.name, member.activations[:0]) for member in self._members], after
        places = torch.as_tensor(labels, device=self.device)
        return self.maker.base_accuracy(self.kept, changes, activations.to(self.device), places)

    # Files.

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, or replace the model there in a single step: a process that reads meanwhile
        finds the old model or the new one.

        All that was changed since the last save is a change in the history then. A save to another folder takes the
        history along, but not the states that ``undo`` restores.

        Raises:
            UserError: the model was loaded from this folder, and another process has changed it since, or is changing
                or serving it.
            OSError: the model cannot be written; what was there is untouched.
        """
        folder, head = Path(path).resolve(), self.head()
        before = self._origin[1] if self._origin and self._origin[0] == folder else None
        history = self._history.saving(to_another_folder=before is None)
        activations = torch.cat([member.activations for member in self._members])
        half = activations.half()
        exact = torch.equal(half.float(), activations)  # not in a model of before version 3
        fitted = {"rows": head.rows, "offset": head.offset} if self.fitted else {}
        kept = [photo for member in self._members for photo in member.photos]
        about, saved = model_folder.write(
            Path(path),
            {
                **self.about(),
                "base_rows": list(self.kept),
                "photos": [asdict(photo) for photo in kept],
                "pictures": self._keeps_pictures,
                "history": [change.model_dump(exclude_defaults=True) for change in history.saved],
                "past": history.past,
            },
            lambda: {
                **{f"backbone.{key}": tensor for key, tensor in self.network.backbone.state_dict().items()},
                **self.maker.tensors(),
            },
            {"activations": half if exact else activations, **fitted},
            {photo.picture: partial(self.picture, photo.picture) for photo in kept if photo.picture},
            before,
        )
        self._origin, self._new_pictures, self._before = (folder, saved), {}, self._state
        self._history = replace(history, past=tuple(about.past), here=saved.state)

    def about(self) -> dict[str, Any]:
        """Return everything but the tensors, as JSON has it: what a model folder and every export say of the model."""
        head, preprocess = self.head(), self.network.preprocess
        spec, method = preprocess.spec, self.maker.about()
        if self.fitted:
            method |= {"unit": head.query_scale is not None, "estimates": [asdict(one) for one in head.estimates]}
        return {
            "method": method,
            "backbone": self.network.backbone.architecture,
            "preprocessing": {**asdict(spec), "interpolation": f"{spec.interpolation}, antialiased", "crop": "centre",
                              "orientation": preprocess.orientation},
            "classes": [asdict(entry) for entry in self.classes],
            "doubt": asdict(head.doubt),
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
            check_added(Path(path), about, parts["added"], check_network(Path(path), about, parts["network"]))
            network = stored.network_of(about, parts["network"], device)
            maker = stored.maker_of(about, network.backbone, parts["network"]).on(device)
            model = cls(network, maker, provenance=about.provenance)
            model._state = model._before = stored.state_of(about, parts["added"], maker)
            model._history = History(tuple(about.history), tuple(about.past), saved.state)
            model._keeps_pictures, model._origin = about.pictures, (Path(path).resolve(), saved)
            return model
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: model.json and its files do not fit together ({text}); make it again") from None
