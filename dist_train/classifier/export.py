"""A model for other programs: a torchvision ResNet's weights, one safetensors file, or an ONNX graph."""

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

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.head import Head
from dist_train.errors import UserError
from dist_train.extras import needs_extra
from dist_train.files import atomic_write, write_text

OPSET = 20


def write_torchvision(model: Classifier, out: Path) -> str:
    """Write the weights of ``torchvision.models.resnet50(num_classes=N)`` (or whatever the backbone is) with the
    model's logits, and a JSON file beside them with the classes and the preprocessing.

    Returns:
        a line of code that loads the file.

    Raises:
        UserError: the logits are not those of a linear layer, as a class has several rows (the rule ``max``) or queries
            are normalised; or torchvision has no such network.
    """
    network, head = model.network, model.head()
    if head.query_scale is not None:
        raise UserError(
            f"--format torchvision: {model.method} classifies by cosine, which a linear layer cannot; "
            f"take --format onnx or safetensors, or make the model by adapt --method phi2"
        )
    if not head.linear:
        several = head.owner.bincount().argmax()
        raise UserError(
            f"--format torchvision: class {model.classes[several].name!r} counts by the largest response of its "
            f"photos, which a linear layer cannot; take --rule mean or rows, or --format onnx or safetensors"
        )
    if network.backbone.architecture["small_stem"]:
        raise UserError("--format torchvision: it has no ResNet with a small stem; take --format onnx or safetensors")
    load = f"torchvision.models.{network.backbone.architecture['name']}(num_classes={len(head.offset)})"
    if network.backbone.architecture["name"] == "resnet10":
        block = "torchvision.models.resnet.BasicBlock"
        load = f"torchvision.models.resnet.ResNet({block}, [1, 1, 1, 1], num_classes={len(head.offset)})"
    weights = {**_body(model), "fc.weight": head.rows.cpu(), "fc.bias": head.offset.cpu()}
    write_text(
        out.with_name(out.name + ".json"),
        json.dumps(model.about(), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    )
    with atomic_write(out) as file:
        torch.save(weights, file)
    return f'model = {load}; model.load_state_dict(torch.load("{out.name}", weights_only=True)); model.eval()'


def write_safetensors(model: Classifier, out: Path) -> str:
    """Write a single file with the backbone under torchvision's names and ``rows`` [R, dim], ``owner`` [R] and
    ``offset`` [classes].

    The score of class c is the largest of ``rows @ query`` among the rows that c owns, plus ``offset[c]``. The query is
    the activation, or, where the header's ``query_scale`` is a number, the activation scaled to that length. Classes,
    preprocessing and provenance are in the header.

    Returns:
        a line of code that opens the file.
    """
    head = model.head()
    tensors = {**_body(model), "rows": head.rows, "owner": head.owner, "offset": head.offset}
    header = {key: json.dumps(value, ensure_ascii=False, allow_nan=False) for key, value in model.about().items()}
    data = save({key: tensor.cpu().contiguous() for key, tensor in tensors.items()},
                {**header, "query_scale": "" if head.query_scale is None else repr(head.query_scale)})  # fmt: skip
    with atomic_write(out) as file:
        file.write(data)
    return f'with safetensors.safe_open("{out.name}", "pt") as file: ...  # docs/python.md'


def write_onnx(model: Classifier, out: Path) -> str:
    """Write an ONNX graph from decoded pixels to scores: ``images`` uint8 [batch, height, width, 3] of any size ->
    ``scores`` and ``probabilities`` float32 [batch, classes]. Classes and preprocessing are in its metadata.

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
                output_names=["scores", "probabilities"], dynamic_shapes=(dims,), verbose=False,
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
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (".onnx", write_onnx),
}
"""The suffix of each format's files, and the function that writes them."""


class Deployed(nn.Module):
    """A module from decoded pixels to scores, with the model's classes as they are."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        network, head = model.network, model.head()
        self.preprocess, self.body, self.query_scale = network.preprocess, network.backbone.body, head.query_scale
        self.rows, self.owner, self.offset = (
            nn.Buffer(tensor.clone()) for tensor in (head.rows, head.owner, head.offset)
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores and probabilities, float32 [B, classes], of images uint8 [B, H, W, 3]."""
        activations = self.body(self.preprocess(images.permute(0, 3, 1, 2)))
        scores = Head(self.rows, self.owner, self.offset, self.query_scale).scores(activations)
        return scores, scores.softmax(1)


def _body(model: Classifier) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone without its classifier, by torchvision's names."""
    return {key: tensor.detach().cpu().contiguous() for key, tensor in model.network.backbone.body.state_dict().items()}
