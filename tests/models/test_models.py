from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision

from dist_train.config import MODELS, LearnConfig, PretrainConfig
from dist_train.errors import UserError
from dist_train.models.backbones import build
from dist_train.models.backbones.cosine import with_linear_classifier
from dist_train.models.backbones.ours import untrained
from dist_train.models.predictor import Predictor


def test_backbone_is_torchvisions_network() -> None:
    model = untrained("resnet18", 7).eval()
    reference = torchvision.models.resnet18(num_classes=7).eval()
    state = {k.removeprefix("body.").replace("head.", "fc."): v for k, v in model.state_dict().items()}
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(model(images), reference(images), atol=1e-5)
    assert model.features(images).shape == (2, model.dim) == (2, 512)


def test_every_resnet_of_torchvision_and_no_other_is_offered() -> None:
    names = torchvision.models.list_models(module=torchvision.models)
    assert set(MODELS) == {"conv4", "resnet10", *(name for name in names if "resnet" in name or "resnext" in name)}


def test_small_stem_keeps_the_resolution_and_other_names_are_refused() -> None:
    model = untrained("resnet10", 3, small_stem=True)
    assert model.body.maxpool(model.body.conv1(torch.zeros(1, 3, 32, 32))).shape[-1] == 32
    with pytest.raises(UserError, match=r"pretrain.model=vit_b_16: not a known network.*resnet50"):
        untrained("vit_b_16", 3)


def test_cosine_classifier_becomes_linear_with_the_same_answers() -> None:
    torch.manual_seed(0)
    model = untrained("conv4", 5, classifier="cosine")
    before = model.head
    activations = 30 * torch.rand(400, 64)
    logits = before(activations)
    cosines = F.cosine_similarity(activations[:, None].double(), before.weight.double()[None], dim=2)
    assert torch.allclose(logits.double(), 20 * cosines, atol=1e-4)
    length = activations.norm(dim=1).mean()
    assert torch.allclose(before.length, length), "the first batch"
    before(2 * activations)
    assert torch.allclose(before.length, 1.1 * length), "a tenth of the next"
    assert torch.allclose(before.eval()(3 * activations), logits, atol=1e-4), "the length of an activation is no matter"
    assert torch.allclose(before.length, 1.1 * length), "not in evaluation"

    linear = with_linear_classifier(model).head
    assert type(linear) is torch.nn.Linear and not linear.bias.any()
    assert torch.equal(linear(activations).argmax(1), logits.argmax(1))
    mean = F.normalize(activations, dim=1) * before.length
    assert torch.allclose(linear(mean), logits, atol=1e-4), "an activation of the mean length"
    assert build(model.architecture).load_state_dict(model.state_dict())


@pytest.mark.parametrize("side", [16, 84])
def test_four_convolutions(side: int) -> None:
    """Vinyals et al. 2016, written out."""
    model = untrained("conv4", 3).eval()
    x = images = torch.randn(2, 3, side, side)
    state = model.state_dict()
    for block in range(4):
        x = F.conv2d(x, state[f"body.{block}.0.weight"], padding=1) / (1 + 1e-5) ** 0.5
        x = F.max_pool2d(x.relu(), 2)
    assert torch.allclose(model.features(images), x.mean((2, 3)), atol=1e-6)
    assert [name for name, _ in model.layers()] == [f"{block}.0" for block in range(4)]


@pytest.mark.parametrize("key", [{"small_stem": True}, {"stochastic_depth": 0.1}])
def test_what_only_a_resnet_has_is_refused(key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(key))}=.*must be left out with pretrain.model=conv4"):
        PretrainConfig(model="conv4", **key)


@pytest.mark.parametrize(("method", "layers"), [("phi1", 1), ("phi2", 2), ("phi2star", 2)])
def test_predictor_starts_as_the_release_does(method: str, layers: int) -> None:
    phi = Predictor(method, 8, LearnConfig())
    assert len(phi.layers) == layers
    assert all(torch.equal(layer.weight, torch.eye(8)) and not layer.bias.any() for layer in phi.layers)
    statistic = torch.rand(5, 8)  # pooled ReLU outputs: not negative, so the identity passes the ReLU
    assert torch.allclose(phi(statistic), F.normalize(statistic, dim=1), atol=1e-6)
    assert torch.equal(phi.query(statistic), statistic)


def test_predictor_formula_and_options() -> None:
    torch.manual_seed(0)
    phi = Predictor(
        "phi2", 6, LearnConfig(identity_init=False, bias=False, normalise_input=False, normalise_query=True)
    )
    x = torch.randn(4, 6)
    by_hand = F.normalize(F.relu(x @ phi.layers[0].weight.T) @ phi.layers[1].weight.T, dim=1)
    assert torch.allclose(phi(x), by_hand, atol=1e-6)
    assert torch.allclose(phi(x).norm(dim=1), torch.ones(4))
    assert torch.allclose(phi.query(x).norm(dim=1), torch.ones(4))
    assert phi.layers[0].bias is None
