"""A model for other programs: weights for torchvision or timm, one safetensors file, or an ONNX graph."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from dist_train.classifier import exported
from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Head
from dist_train.errors import UserError, command
from dist_train.extras import needs_extra
from dist_train.files import atomic_write, write_text
from dist_train.models.backbones import torchvision_source

OPSET = 20


def write_torchvision(model: Classifier, out: Path) -> str:
    """Write the weights of torchvision's network (``torchvision.models.resnet50(num_classes=N)``, or whatever the
    backbone is) with the model's logits, and a JSON file beside them with the classes and the preprocessing.

    Returns:
        a line of code that loads the file.

    Raises:
        UserError: the logits are not those of a linear layer, as a class has several rows (the rule ``max``) or queries
            are normalised; or torchvision has no such network.
    """
    architecture, classes = model.network.backbone.architecture, len(model.classes)
    source, name = architecture.get("source", "ours"), architecture["name"]
    if source == "timm":
        raise UserError(f"--format torchvision: the network is timm's {name}; take --format timm")
    if source == "ours" and architecture["small_stem"]:
        raise UserError("--format torchvision: it has no ResNet with a small stem; take --format onnx or safetensors")
    if name == "conv4":
        raise UserError("--format torchvision: it has no conv4; take --format onnx or safetensors")
    load = f"torchvision.models.{name}(num_classes={classes})"
    if source == "torchvision":
        options = "".join(
            f", {key}={value!r}" for key, value in torchvision_source.options_of(name, architecture.get("size")).items()
        )
        load = f'torchvision.models.get_model("{name}", num_classes={classes}{options})'
    if name == "resnet10":
        block = "torchvision.models.resnet.BasicBlock"
        load = f"torchvision.models.resnet.ResNet({block}, [1, 1, 1, 1], num_classes={classes})"
    return _write_linear(model, out, "torchvision", load, architecture.get("classifier", "fc"))


def write_timm(model: Classifier, out: Path) -> str:
    """Write the weights of ``timm.create_model(NAME, num_classes=N)`` with the model's logits, and a JSON file beside
    them with the classes and the preprocessing.

    Returns:
        a line of code that loads the file.

    Raises:
        UserError: the network is not timm's or has no linear classifier, or the logits are not those of a linear layer.
    """
    architecture = model.network.backbone.architecture
    if architecture.get("source") != "timm":
        raise UserError(f"--format timm: the network, {architecture['name']}, is not timm's; take --format torchvision")
    if architecture["classifier"] is None:
        raise UserError(f"--format timm: its {architecture['name']} has no linear classifier; take --format onnx or "
                        f"safetensors")  # fmt: skip
    size = f", img_size={architecture['size']}" if "size" in architecture else ""
    load = f'timm.create_model("{architecture["name"]}", num_classes={len(model.classes)}{size})'
    return _write_linear(model, out, "timm", load, architecture["classifier"])


def _write_linear(model: Classifier, out: Path, library: str, load: str, classifier: str) -> str:
    """Write the weights of a library's network.

    Args:
        library: the format's name.
        load: code that makes the network.
        classifier: name of its linear layer.

    Returns:
        a line of code that loads the file.
    """
    head = model.head()
    _refuse_densities(model, library, "phi2 --rule mean")
    if head.query_scale is not None:
        linear = "give the model another head: adapt MODEL --head lda" if model.fitted else \
            f"make another model of the run: {command('adapt', 'RUN', '--method')} phi2 --rule mean"  # fmt: skip
        raise UserError(
            f"--format {library}: {model.method} classifies by cosine, which a linear layer cannot; "
            f"take --format onnx or safetensors, or {linear}"
        )
    if not head.linear:
        several = model.classes[head.owner.bincount().argmax()]
        rows = "photos" if several.added else "photos and its row of the run"
        remedy = "take --rule mean or rows, or " if several.added else "take "
        raise UserError(
            f"--format {library}: class {several.name!r} counts by the largest response of its {rows}, which a "
            f"linear layer cannot; {remedy}--format onnx or safetensors"
        )
    weights = {**_body(model), f"{classifier}.weight": head.rows.cpu(), f"{classifier}.bias": head.offset.cpu()}
    write_text(
        out.with_name(out.name + ".json"),
        json.dumps(model.about(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    with atomic_write(out) as file:
        torch.save(weights, file)
    return f'model = {load}; model.load_state_dict(torch.load("{out.name}", weights_only=True)); model.eval()'


def write_safetensors(model: Classifier, out: Path) -> str:
    """Write a single file with the backbone under its library's names and ``rows`` [R, dim], ``owner`` [R] and
    ``offset`` [R].

    The score of class c is the largest of ``rows @ query + offset`` among the rows that c owns. The query is the
    activation, or, where the header's ``query_scale`` is a number, the activation scaled to that length. Classes,
    preprocessing and provenance are in the header.

    Returns:
        a line of code that opens the file.

    Raises:
        UserError: the model scores by densities too.
    """
    head = model.head()
    _refuse_densities(model, "safetensors", "phi_plus")
    tensors = {**_body(model), "rows": head.rows, "owner": head.owner, "offset": head.offset}
    header = {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in model.about().items()}
    data = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()},
                {**header, "query_scale": "" if head.query_scale is None else repr(head.query_scale)})  # fmt: skip
    with atomic_write(out) as file:
        file.write(data)
    return f'with safetensors.safe_open("{out.name}", "pt") as file: ...  # docs/python.md'


def write_onnx(model: Classifier, out: Path) -> str:
    """Write an ONNX graph from decoded pixels to scores: ``images`` uint8 [batch, height, width, 3] of any size ->
    ``scores`` and ``probabilities`` float32 [batch, classes], and ``nearness`` float32 [batch], the cosine to the
    nearest class mean. Classes, preprocessing and thresholds are in its metadata; ``exported`` answers from it.

    Returns:
        a line of code that runs the graph.

    Raises:
        UserError: the extra ``export`` is not installed.
    """
    with needs_extra("export", "--format onnx"):
        import onnx  # noqa: F401  torch.onnx imports both, late and under names of its own
        import onnxscript  # noqa: F401
    deployed = Deployed(model).eval()
    example = torch.zeros(2, 300, 400, 3, dtype=torch.uint8)
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("height"), 2: torch.export.Dim("width")}
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    try:
        noisy.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):  # the exporter warns of itself
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                deployed, (example,), dynamo=True, opset_version=OPSET, input_names=["images"],
                output_names=["scores", "probabilities", "nearness"], dynamic_shapes=(dims,), verbose=False,
            )  # fmt: skip
    finally:
        noisy.setLevel(level)
    proto = program.model_proto
    for key, value in model.about().items():
        proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False, allow_nan=False))
    with atomic_write(out) as file:
        file.write(proto.SerializeToString())
    return f'session = onnxruntime.InferenceSession("{out.name}"); session.run(None, {{"images": pixels}})'


FORMATS: dict[str, tuple[str, Callable[[Classifier, Path], str]]] = {
    "torchvision": (".pth", write_torchvision),
    "timm": (".pth", write_timm),
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (exported.SUFFIX, write_onnx),
}
"""The suffix of each format's files, and the function that writes them."""


class Deployed(nn.Module):
    """A module from decoded pixels to scores, with the model's classes as they are."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        network, head = model.network, model.head()
        self.preprocess, self.body = network.preprocess, network.backbone.body
        self.query_scale, self.classes, self.doubt = head.query_scale, head.classes, head.doubt
        self.longer = head.longer
        self.rows, self.owner, self.offset = (
            nn.Buffer(tensor.clone()) for tensor in (head.rows, head.owner, head.offset)
        )
        self.means = None if head.means is None else nn.Buffer(head.means.clone())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return scores and probabilities, float32 [B, classes], and nearness, float32 [B], of images uint8
        [B, H, W, 3]."""
        activations = self.body(self.preprocess(images.permute(0, 3, 1, 2)))
        head = Head(self.rows, self.owner, self.offset, self.classes, self.query_scale, means=self.means,
                    doubt=self.doubt, longer=self.longer)  # fmt: skip
        scores = head.scores(activations)
        return scores, head.probabilities(scores), head.nearness(activations)


def _refuse_densities(model: Classifier, file_format: str, method: str) -> None:
    """Check that a model scores by rows alone.

    Args:
        model: the model.
        file_format: the format that is asked for.
        method: of a model that has it, as options of adapt.

    Raises:
        UserError: it scores by densities too.
    """
    if model.head().longer is not None:
        raise UserError(
            f"--format {file_format}: {model.method} scores by densities beside rows, which this format has no place "
            f"for; take --format onnx, or make another model of the run: {command('adapt', 'RUN', '--method')} {method}"
        )


def _body(model: Classifier) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone without its classifier, by its library's names."""
    return {key: tensor.detach().cpu().contiguous() for key, tensor in model.network.backbone.body.state_dict().items()}
