"""The backbone of another run: what its stage ``pretrain`` has left, with the classes that it was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dist_train.config import BackboneConfig, Preprocessing
from dist_train.errors import UserError
from dist_train.files import damaged_file, read_manifest
from dist_train.models.backbones import weights
from dist_train.models.backbones.backbone import Backbone
from dist_train.models.backbones.building import build
from dist_train.models.backbones.pretrained import Origin, Pretrained

FINAL = Path("pretrain") / "final"
"""Where a run's finished backbone lies in its folder."""


def open_network(name: str, options: BackboneConfig) -> Pretrained:
    """Open the backbone of the run whose folder is ``options.weights``.

    Args:
        name: empty, for the folder says which network it is.
        options: with the folder.

    Raises:
        UserError: there is no such run, it has no finished backbone, a file of it is damaged, or the network does not
            take the size of ``options``.
    """
    path = weights_file(name, options)
    state = _state(path.parent)
    backbone, classes = build(state["architecture"]), tuple(state["classes"])
    tensors, _ = weights.read_weights(path)
    if words := weights.misfit(backbone, tensors):
        raise weights.refuse_misfit(path, "this run's network", words)
    if not state["has_head"]:
        backbone.set_head(0)
    rows = classes if state["has_head"] else None
    preprocessing = _resized(Preprocessing.from_json(state["preprocessing"]), backbone, options.size)
    return Pretrained(backbone.eval(), preprocessing, rows, _origin(path, state, classes))


def weights_file(name: str, options: BackboneConfig) -> Path:
    """Return the file of the weights.

    Raises:
        UserError: no run is named, or it has no finished backbone.
    """
    if options.download:
        raise UserError("backbone.download=true: a run is not downloaded; name its folder with --backbone.weights RUN")
    if options.weights is None:
        raise UserError("backbone.source=run: which run is not said; name its folder with --backbone.weights RUN")
    _check_run(options.weights)
    return options.weights / FINAL / "tensors.pt"


def check(name: str, options: BackboneConfig) -> None:
    """Check that a run is named whose backbone is finished.

    Raises:
        UserError: see ``weights_file``.
    """
    weights_file(name, options)


def _check_run(folder: Path) -> None:
    """Check that a folder is a run's, with a backbone that is finished.

    Raises:
        UserError: it is not.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; for backbone.source=run give the folder of a run")
    if not (folder / FINAL / "manifest.json").is_file():
        raise UserError(
            f"{folder}: has no finished backbone ({FINAL}); give the folder of a run whose pretrain is done"
        )


def _state(folder: Path) -> dict[str, Any]:
    """Return what a run says of its backbone, whose files are checked by their hashes.

    Raises:
        UserError: a file is missing, damaged, or of a version before 0.3.
    """
    try:
        damaged = damaged_file(folder, read_manifest(folder))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error}); name another run") from None
    except ValueError as error:
        raise UserError(f"{folder / 'manifest.json'}: damaged ({error}); name another run") from None
    if damaged:
        why = "damaged (its hash is not the manifest's)" if damaged.is_file() else "cannot be read (it is not there)"
        raise UserError(f"{damaged}: {why}; name another run")
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if not {"architecture", "preprocessing", "has_head"} <= state.keys():
        raise UserError(
            f"{folder}: was made before version 0.3, and does not say what its images go through; train anew"
        )
    return state


def _origin(path: Path, state: Mapping[str, Any], classes: tuple[str, ...]) -> Origin:
    """Say what the network has seen: the classes of the run, and what a network that it started from had seen."""
    run = path.resolve().parents[2].name  # a member of a sweep has a link to the pretrain of its run
    before = Origin.from_json(state["origin"]) if state["origin"] else None
    trained = "step" in state  # otherwise the run took a trained network in as it is
    words = [before.trained_on or "unknown data"] if before else []
    words += [f"{len(classes)} classes of the run {run}"] if trained else []
    sha256 = read_manifest(path.parent)[path.name]["sha256"]  # which ``_state`` has compared with the file
    seen = {*((before.seen or ()) if before else ()), *(classes if trained else ())}
    return Origin(
        "run", path.name, sha256, before.licence if before else "", ", then ".join(words),
        tuple(sorted(seen)) or None, before is None or before.complete,
    )  # fmt: skip


def _resized(own: Preprocessing, backbone: Backbone, size: int | None) -> Preprocessing:
    """Return what images go through, of the network's own size or another.

    Raises:
        UserError: the network is of another library, and so its size is fixed once it is in a run.
    """
    if size in (None, own.size):
        return own
    if "source" in backbone.architecture:
        raise UserError(f"backbone.size={size}: the run's network has images of {own.size} pixels; leave the size out")
    return own.at(size)
