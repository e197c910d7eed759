"""What the API takes and answers, as types: they check every answer, and ``/openapi.json`` describes them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class _Reply(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, from_attributes=True)


class Fault(_Reply):
    """What went wrong; the code of the answer says whose fault it is."""

    detail: str
    """A line for the user, in English: the thing, its value, and the remedy."""
    code: str = ""
    """What went wrong, as "class.exists", for lines in other languages; "" where there is none."""
    values: dict[str, str | int] = {}
    """What such a line names: the name of the class, the limit."""


class ServedClass(_Reply):
    """A class of a model."""

    name: str
    """Its name in predictions; no two classes share it."""
    wnid: str
    """Its WordNet id; "" where it has none."""
    photos: int
    """How many photos the model keeps of it; of a class that came with the model's run, those it was given later."""
    added: str
    """The day it was added, as 2026-11-25; "" for a class that came with the model's run."""
    picture: str | None = None
    """Id of a small picture, of its first photo; null where there is none."""


class ShownPhoto(_Reply):
    """A photo that the model keeps of a class."""

    id: str
    """What removes it."""
    name: str
    """The name of its file; "" where it had none."""
    added: str
    """The day it was added, as 2026-11-25; "" where that is not known."""
    picture: str | None
    """Id of its small picture; null where there is none."""


class ClassPhotos(_Reply):
    """The photos that the model keeps of a class."""

    photos: list[ShownPhoto]


class ShownDeed(_Reply):
    """One thing that was done to a model."""

    kind: str
    """What was done: added, removed, renamed, photos_added, photos_removed, pictures_dropped, rule, head or prior."""
    name: str
    """The class; of rule, head and prior, what was chosen; "" where there is neither."""
    new: str
    """The new name of a class that was renamed; else ""."""
    photos: int
    """How many photos came or went."""
    undone: bool
    """Whether this was undone, and not done."""


class ShownDeeds(_Reply):
    """What a change did to a model."""

    text: str
    """What was changed, in English."""
    parts: list[ShownDeed]
    """The same for texts in other languages; empty for changes by older versions."""
    more: int
    """Things that were done beside ``parts``."""


class ShownChange(ShownDeeds):
    """A change of a model."""

    time: str
    """As 2026-11-25T09:30:00Z, in UTC."""


class Changes(_Reply):
    """The changes of a model, the last at the end."""

    changes: list[ShownChange]


class ServedLimits(_Reply):
    """What a client may send and add."""

    upload: int
    """Bytes of an upload."""
    pixels: int
    """Pixels of a photo."""
    classes: int
    """Classes of a model, all together."""
    remembered: int
    """Photos that the server knows by their ids, the last that it has seen."""


class SystemNames(_Reply):
    """Names of files and folders that operating systems leave among photos."""

    files: list[str]
    folders: list[str]


class ModelSummary(_Reply):
    """A model in the list of models."""

    name: str
    """The name of its folder, by which its addresses are formed."""
    classes: int
    """How many classes it has."""
    method: str
    """What makes a class of its photos."""


class ModelList(_Reply):
    """The models that this server has."""

    models: list[ModelSummary]


class About(_Reply):
    """A model as the page shows it."""

    name: str
    """The name of its folder."""
    method: str
    """What makes a class of its photos."""
    prior: str
    """How frequent the classes are taken to be: equal, or photos, each as its photos; "" for a model from a run."""
    threshold: float
    """The probability, from 0 to 1, below which an answer is not sure."""
    classes: list[ServedClass]
    last_change: str | None
    """What undo would undo, in English; null where there is nothing."""
    last: ShownDeeds | None
    """The same in parts."""
    limits: ServedLimits
    suffixes: list[str]
    """Ends of the names of files that are photos."""
    system: SystemNames
    """Names of files and folders that are no photos, whatever their ends."""


class ShownPrediction(_Reply):
    """A class that a photo may show."""

    name: str
    wnid: str
    probability: float
    """Between 0 and 1; over all classes they add up to 1."""


class PhotoAnswer(_Reply):
    """What the model says of a photo."""

    id: str
    """Sha256 of the file, by which the server knows the photo until it has seen 2000 others."""
    sure: bool
    """Whether the model stands by its first prediction."""
    familiarity: float
    """Percent of known photos that look less like the model's classes than this photo does."""
    strange: bool
    """Whether that is below 5: the photo is unlike the model's classes."""
    predictions: list[ShownPrediction]
    """The best classes, the best first."""


class NamedAnswer(PhotoAnswer):
    """What the model says of a photo that was sent."""

    name: str
    """The name of its file."""


class PhotoFault(_Reply):
    """A photo that could not be read."""

    name: str
    """The name of its file."""
    error: str
    """What is wrong with it, and what to do, in English."""
    code: str = ""
    """What is wrong, as "photo.damaged", for lines in other languages; "" where there is none."""
    values: dict[str, str | int] = {}
    """What such a line names."""


class Classified(_Reply):
    """An answer or a fault for each photo, in the order sent."""

    results: list[NamedAnswer | PhotoFault]


class Remembered(_Reply):
    """An answer for each id, in the order asked; null for a photo that the server has forgotten."""

    results: list[PhotoAnswer | None]


class LabelledPhoto(_Reply):
    """A photo that was classified before, with its class."""

    id: str
    """The id that it was answered with."""
    label: str
    """Name or wnid of its class."""
