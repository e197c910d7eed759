"""The format of a model: every key of ``model.json`` with its type and range, and the tensors that belong to it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    FailFast,
    Field,
    JsonValue,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked

from dist_train.classifier.answer import Class
from dist_train.classifier.doubt import Doubt
from dist_train.classifier.head import Estimate
from dist_train.classifier.heads.choice import HEADS
from dist_train.classifier.heads.prior import Prior
from dist_train.classifier.kept import MAX_NAME, KeptPhoto
from dist_train.classifier.posterior import POSTERIOR_TENSORS
from dist_train.classifier.predicted import posterior_share, row_method
from dist_train.config import MODELS, LearnConfig, Orientation, Rule
from dist_train.config.backbone import MAX_RESIZE, MAX_SIZE, Preprocessing
from dist_train.errors import UserError, counted
from dist_train.names import is_class_name, shown

VERSION = 3
"""Version 2 had no photos by name, no pictures and no history; version 1 knew only models from runs whose backbone is a
ResNet of our own. Both are still read."""
MAX_JSON, MAX_PART = 1 << 26, 1 << 33
"""Bytes that ``model.json`` may have, and each of the files that it names."""

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)
_OF_RUN = ("base_rows", "sample.activations", "sample.labels")  # tensors of a model from a run that are in no layer
_IMAGES = ("means", "held_out.activations", "held_out.labels")  # of a model from a run, if it is not older than these
_BACKGROUND = ("background.scatter", "background.freedom")  # of a model of photos alone, if it has a background
_MAX_ROWS = 100_000
MAX_TEXT, MAX_CHANGES, MAX_PAST, MAX_PARTS = 1000, 1000, 10, 3
"""Characters of the text of a change, changes that are listed, those that can be undone, and parts that a change
names."""


def _known(name: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise ValueError(f"give one of {', '.join(names)}")
    return name


def _method(name: str) -> str:
    try:
        row_method(name)
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"--method {shown(name)}: ")) from None  # the key is named instead
    return name


def _name(name: str) -> str:
    if not is_class_name(name):
        raise ValueError("no class name: 1 to 200 printable characters in composed form (NFC), with no slash and no "
                         "space at the ends")  # fmt: skip
    return name


def _wnid(wnid: str) -> str:
    if wnid and not is_class_name(wnid):
        raise ValueError("a wnid has printable characters, as a class name")
    return wnid


def _finite(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()  # raises for numbers like 1e999, which are infinite
    return value


def _visible(text: str) -> str:
    if shown(text) != text:
        raise ValueError("has a character that cannot be seen")
    return text


_Day = Annotated[str, Field(pattern=r"^(\d{4}-\d\d-\d\d)?$")]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]{1,100}$")]
_Percent = Annotated[float, Field(ge=0, le=100)]
_Positive = Annotated[float, Field(gt=0, le=1e6)]
_ShortText = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_visible)]


class Part(BaseModel):
    """The entry of a file beside ``model.json``."""

    model_config = _STRICT
    file: Annotated[str, Field(pattern=r"^((network|added)-[0-9a-f]{16}\.safetensors|model-[0-9a-f]{16}\.json)$")]
    bytes: Annotated[int, Field(ge=8, le=MAX_PART)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Files(BaseModel):
    """The entries of all files beside ``model.json``."""

    model_config = _STRICT
    network: Part
    added: Part


class PredictedMethod(BaseModel):
    """The entry ``method`` of a model from a run."""

    model_config = _STRICT
    name: Annotated[str, AfterValidator(_method)]
    rule: Rule
    calibration_cost: Annotated[float, Field(ge=0, le=100)]
    learn: checked(LearnConfig, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))  # type: ignore[valid-type]
    plda_power: _Positive | None = None  # these two where the method scores by densities too
    plda_temperature: _Positive | None = None

    @model_validator(mode="after")
    def _fits(self) -> PredictedMethod:
        needed = posterior_share(self.name) is not None
        if any((value is not None) != needed for value in (self.plda_power, self.plda_temperature)):
            raise ValueError(f"plda_power and plda_temperature must {'' if needed else 'not '}be there for {self.name}")
        return self


class _Estimate(BaseModel):
    model_config = _STRICT
    head: Annotated[str, AfterValidator(lambda name: _known(name, tuple(HEADS)))]
    strength: Annotated[float, Field(gt=0, le=1e6)] | None
    accuracy: _Percent
    low: _Percent | None = None
    high: _Percent | None = None
    half_width: _Percent | None = None  # in place of low and high in models before 2026-12
    judged_by: Annotated[str, Field(max_length=100)]

    @model_validator(mode="after")
    def _fits(self) -> _Estimate:
        given = [value is not None for value in (self.low, self.high, self.half_width)]
        if given not in ([True, True, False], [False, False, True]):
            raise ValueError("low and high must be there, or half_width in their place")
        return self

    def to_estimate(self) -> Estimate:
        """Return the estimate as a ``Head`` has it."""
        low, high = self.low, self.high
        if low is None or high is None:
            assert self.half_width is not None  # see ``_fits``
            low, high = max(0.0, self.accuracy - self.half_width), min(100.0, self.accuracy + self.half_width)
        return Estimate(self.head, self.strength, self.accuracy, low, high, self.judged_by)


class FittedMethod(BaseModel):
    """The entry ``method`` of a model of photos alone."""

    model_config = _STRICT
    head: Annotated[str, AfterValidator(lambda name: _known(name, ("auto", *HEADS)))]
    strength: Annotated[float, Field(gt=0, le=1e6)] | None
    unit: bool
    estimates: Annotated[list[_Estimate], Field(max_length=len(HEADS))]
    prior: Prior = "equal"  # models before 2026-12 have no such key

    def to_estimates(self) -> tuple[Estimate, ...]:
        """Return the estimates as a ``Head`` has them."""
        return tuple(entry.to_estimate() for entry in self.estimates)


class _Doubt(BaseModel):
    model_config = _STRICT
    temperature: Annotated[float, Field(gt=0, le=1e9)]
    threshold: Annotated[float, Field(ge=0, le=1)]
    familiar: Annotated[float, Field(ge=0, le=100)]
    percentiles: Annotated[list[Annotated[float, Field(ge=-1.01, le=1.01)]], Field(max_length=101)]

    @model_validator(mode="after")
    def _fits(self) -> _Doubt:
        if len(self.percentiles) not in (0, 101) or self.percentiles != sorted(self.percentiles):
            raise ValueError("percentiles must be 101 numbers that grow, or none")
        return self


class _Ours(BaseModel):
    model_config = _STRICT
    name: Annotated[str, AfterValidator(lambda name: _known(name, MODELS))]
    num_classes: Annotated[int, Field(ge=0, le=_MAX_ROWS)]
    small_stem: bool


class _OfLibrary(BaseModel):
    model_config = _STRICT
    source: Literal["timm", "torchvision"]
    name: _Word
    classifier: _Word | None
    num_classes: Annotated[int, Field(ge=0, le=_MAX_ROWS)]
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] | None = None


class _Preprocessing(BaseModel):
    model_config = _STRICT
    resize: Annotated[int, Field(ge=1, le=MAX_RESIZE)]
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear, antialiased", "bicubic, antialiased"]
    squash: bool = False  # models before 2026-12 have no such key
    crop: Literal["centre"]
    orientation: Orientation | Literal["by EXIF"]  # "by EXIF" is how models before 2026-12 write "exif"

    @model_validator(mode="after")
    def _fits(self) -> _Preprocessing:
        _ = self.spec  # checks the ranges
        return self

    @property
    def spec(self) -> Preprocessing:
        """What the network takes."""
        return Preprocessing(
            resize=self.resize,
            size=self.size,
            interpolation="bicubic" if self.interpolation == "bicubic, antialiased" else "bilinear",
            mean=self.mean,
            std=self.std,
            squash=self.squash,
        )


class _Class(BaseModel):
    model_config = _STRICT
    name: Annotated[str, AfterValidator(_name)]
    wnid: Annotated[str, Field(max_length=200), AfterValidator(_wnid)] = ""
    photos: Annotated[int, Field(ge=0, le=_MAX_ROWS)] = 0
    added: _Day = ""


class _Photo(BaseModel):
    model_config = _STRICT
    id: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
    name: _ShortText
    added: _Day
    picture: Annotated[str, Field(pattern="^([0-9a-f]{32})?$")]


class Deed(BaseModel):
    """One thing that was done to a model, or that was undone.

    Attributes:
        kind: what was done.
        name: the class; of the kinds "rule", "head" and "prior", what was chosen; "" where there is neither.
        new: the name that a class was given in place of ``name``; "" where none was renamed.
        photos: how many came or went.
        undone: whether this was undone, and not done.
    """

    model_config = _STRICT
    kind: Literal[
        "added", "removed", "renamed", "photos_added", "photos_removed", "pictures_dropped", "rule", "head", "prior"
    ]
    name: _ShortText = ""
    new: _ShortText = ""
    photos: Annotated[int, Field(ge=0, le=_MAX_ROWS)] = 0
    undone: bool = False


class Told(BaseModel):
    """What a change did, as a text and in parts, from which other languages make their texts.

    Attributes:
        text: what was changed, as in "added okapi (3 photos)".
        parts: the first things that were done; empty in models that were changed before parts were kept.
        more: how many further things were done.
    """

    model_config = _STRICT
    text: Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_visible)]
    parts: Annotated[tuple[Deed, ...], Field(max_length=MAX_PARTS)] = ()
    more: Annotated[int, Field(ge=0)] = 0


class Change(Told):
    """A change of a model: what a command, or a call of the API, did to it.

    Attributes:
        time: of the change, as "2026-11-25T09:30:00Z", in UTC.
    """

    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class Past(Change):
    """A change that can be undone.

    Attributes:
        before: the file of the state before it, which is ``model.json`` as it was then.
    """

    before: Part


class About(BaseModel):
    """The content of ``model.json``."""

    model_config = _STRICT
    version: Literal[1, 2, 3]
    method: Annotated[
        Annotated[PredictedMethod, Tag("<predicted>")] | Annotated[FittedMethod, Tag("<fitted>")],
        Discriminator(lambda value: "<fitted>" if isinstance(value, dict) and "head" in value else "<predicted>"),
    ]
    backbone: Annotated[
        Annotated[_Ours, Tag("<ours>")] | Annotated[_OfLibrary, Tag("<library>")],
        Discriminator(lambda value: "<library>" if isinstance(value, dict) and "source" in value else "<ours>"),
    ]
    preprocessing: _Preprocessing
    classes: Annotated[list[_Class], FailFast(), Field(min_length=1, max_length=_MAX_ROWS)]
    base_rows: Annotated[list[Annotated[int, Field(ge=0, lt=_MAX_ROWS)]], FailFast()]
    photos: Annotated[list[_Photo], FailFast()] = []  # of all classes, in their order
    pictures: bool = True
    history: Annotated[list[Change], FailFast(), Field(max_length=MAX_CHANGES)] = []
    past: Annotated[list[Past], Field(max_length=MAX_PAST)] = []
    doubt: _Doubt | None = None
    provenance: Annotated[dict[str, JsonValue], AfterValidator(_finite)]
    files: Files

    @model_validator(mode="after")
    def _fits(self) -> About:
        names = [entry.name for entry in self.classes]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ValueError(f"classes need different names; two are {twice!r}")
        if self.base_rows != sorted(set(self.base_rows)):
            raise ValueError("base_rows must grow")
        base, added = self.classes[: len(self.base_rows)], self.classes[len(self.base_rows) :]
        if len(base) < len(self.base_rows) or any(entry.added for entry in base):
            raise ValueError("classes must begin with a class that was not added for each of base_rows")
        if not all(entry.photos for entry in added):
            raise ValueError("classes after those of base_rows need photos")
        count = sum(entry.photos for entry in self.classes)
        if self.version < VERSION and any(entry.photos for entry in base):
            raise ValueError("classes of base_rows have no photos in this version")
        if self.version == VERSION and len(self.photos) != count:
            raise ValueError(f"photos must be the {counted(count, 'photo')} of classes")
        if self.fitted and self.base_rows:
            raise ValueError("base_rows must be empty where the head is fitted to photos")
        return self

    @property
    def fitted(self) -> bool:
        """Whether the model is one of photos alone."""
        return isinstance(self.method, FittedMethod)

    @property
    def has_posterior(self) -> bool:
        """Whether the model scores by densities too."""
        return isinstance(self.method, PredictedMethod) and posterior_share(self.method.name) is not None

    def to_classes(self) -> list[Class]:
        """Return the classes of the run that have not been removed, then the added ones."""
        return [Class(**entry.model_dump()) for entry in self.classes]

    def to_doubt(self) -> Doubt:
        """Return when an answer is not sure; never in a version that does not know."""
        if self.doubt is None:
            return Doubt()
        return Doubt(**{**self.doubt.model_dump(), "percentiles": tuple(self.doubt.percentiles)})

    def to_photos(self) -> list[KeptPhoto] | None:
        """Return the photos of all classes in their order; None in a version that does not know them."""
        return None if self.version < VERSION else [KeptPhoto(**photo.model_dump()) for photo in self.photos]


def parse(data: bytes, path: object) -> About:
    """Read ``model.json`` from its bytes, and check every value.

    Raises:
        UserError: the bytes are not JSON or of another version, a key is unknown or missing, or a value is out of its
            range; the line names ``path`` and the key.
    """
    try:
        version = _Version.model_validate_json(data).version
        if version not in range(1, VERSION + 1) or isinstance(version, bool):
            remedy = f"this dist_train reads 1 to {VERSION}; make the model again with it"
            raise UserError(f"{path}: version {_short(version)}, and {remedy}")
        return About.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        kinds = ("<ours>", "<library>", "<predicted>", "<fitted>")  # of an entry that has several; no keys
        key = ".".join(shown(part) for part in first["loc"] if part not in kinds)
        what = first["msg"].removeprefix("Value error, ")
        if first["type"] == "json_invalid" or not key:
            cause = f"{path}: damaged ({what})"
        else:
            cause = f"{path}: {key} = {_short(first['input'])}: {what[:1].lower()}{what[1:]}"
        raise UserError(f"{cause}; make the model again") from None


class _Version(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    version: JsonValue = None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def check_network(folder: Path, about: About, network: Mapping[str, torch.Tensor]) -> int:
    """Check that the tensors of a model's network are finite and that their shapes fit together; return the length of
    an activation. The tensors of layers are compared with the layers when they are loaded.

    Args:
        folder: the model folder, for errors.
        about: its ``model.json``.
        network: the tensors by name.

    Raises:
        UserError: a tensor is missing, superfluous or wrong; the line names the file and the tensor.
    """
    file = folder / about.files.network.file
    background = _BACKGROUND if "background.scatter" in network else ()
    of_run = (*_OF_RUN, *(_IMAGES if "means" in network else ()), *(POSTERIOR_TENSORS if about.has_posterior else ()))
    needed = (*(background if about.fitted else of_run), "backbone.head.weight")
    _check_names(file, network, needed, ("backbone.",) if about.fitted else ("backbone.", "predictor."))
    head, classes = network["backbone.head.weight"], about.backbone.num_classes
    dim = head.shape[-1] if head.ndim else 0
    _check_shape(file, "backbone.head.weight", head, classes, dim)
    if not about.fitted:
        _check_of_run(file, about, network, dim)
    elif background:
        _check_shape(file, "background.scatter", network["background.scatter"], dim, dim)
        _check_shape(file, "background.freedom", network["background.freedom"], 1)
    return dim


def check_added(folder: Path, about: About, added: Mapping[str, torch.Tensor], dim: int) -> None:
    """Check the tensors of a model's photos as ``check_network`` does those of its network.

    Args:
        dim: the length of an activation.
    """
    file, classes = folder / about.files.added.file, len(about.classes)
    _check_names(file, added, ("activations", "rows", "offset") if about.fitted else ("activations",))
    _check_shape(file, "activations", added["activations"], sum(entry.photos for entry in about.classes), dim)
    if about.fitted:
        _check_shape(file, "rows", added["rows"], classes, dim)
        _check_shape(file, "offset", added["offset"], classes)


def _check_names(
    file: Path, tensors: Mapping[str, torch.Tensor], needed: tuple[str, ...], layers: tuple[str, ...] = ()
) -> None:
    """Check that these tensors are there, that all others are of layers, and the values of all of them."""
    for name in needed:
        if name not in tensors:
            raise _wrong(file, name, "is not there")
    for name, tensor in tensors.items():
        if name not in needed and not name.startswith(layers):
            raise _wrong(file, name, "belongs to nothing")
        _check_values(file, name, tensor)


def _check_of_run(file: Path, about: About, network: Mapping[str, torch.Tensor], dim: int) -> None:
    classes = about.backbone.num_classes
    rows, sample, labels = (network[name] for name in _OF_RUN)
    _check_shape(file, "base_rows", rows, classes, dim)
    _check_shape(file, "sample.activations", sample, len(sample) if sample.ndim else 0, dim)
    _check_shape(file, "sample.labels", labels, len(sample))
    if max(about.base_rows, default=0) >= classes:
        raise _wrong(file, "base_rows", f"has {counted(classes, 'row')}, and model.json's base_rows name others")
    _check_labels(file, "sample.labels", labels, classes)
    if about.has_posterior:
        _check_posterior(file, classes, network, dim)
    if "means" in network:
        images, labels = network["held_out.activations"], network["held_out.labels"]
        _check_shape(file, "means", network["means"], classes, dim)
        _check_shape(file, "held_out.activations", images, len(images) if images.ndim else 0, dim)
        _check_shape(file, "held_out.labels", labels, len(images))
        _check_labels(file, "held_out.labels", labels, classes)


def _check_posterior(file: Path, classes: int, network: Mapping[str, torch.Tensor], dim: int) -> None:
    shapes = ((dim,), (dim,), (dim, dim), (dim,), (classes, dim), (classes,))
    for name, shape in zip(POSTERIOR_TENSORS, shapes, strict=True):
        _check_shape(file, name, network[name], *shape)
    for name in ("posterior.between", "posterior.counts"):
        if bool((network[name] <= 0).any()):
            raise _wrong(file, name, "has values that are not above zero")


def _check_labels(file: Path, name: str, labels: torch.Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or (len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes):
        raise _wrong(file, name, f"must be whole numbers below {classes}")


def _check_shape(file: Path, name: str, tensor: torch.Tensor, *wanted: int) -> None:
    if tuple(tensor.shape) != wanted:
        raise _wrong(file, name, f"has the shape {list(tensor.shape)}, and {list(wanted)} belongs to model.json")


def _check_values(file: Path, name: str, tensor: torch.Tensor) -> None:
    whole = name in ("sample.labels", "held_out.labels", "background.freedom") or name.endswith(".num_batches_tracked")
    wanted = torch.int64 if whole else torch.float16 if name.endswith("activations") else torch.float32
    of_old_model = name == "activations" and tensor.dtype == torch.float32
    if tensor.dtype != wanted and not of_old_model:
        raise _wrong(file, name, f"is of {tensor.dtype}, and must be of {wanted}")
    if not bool(tensor.isfinite().all()):
        raise _wrong(file, name, "has values that are not finite (NaN or infinite)")
    if name.endswith("running_var") and bool((tensor < 0).any()):
        raise _wrong(file, name, "has negative values, and is a variance")


def _wrong(file: Path, name: str, what: str) -> UserError:
    return UserError(f"{file}: tensor {shown(name)!r} {what}; make the model again")
