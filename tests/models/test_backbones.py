"""Trained networks of timm and torchvision: what they compute, what their files may look like, and what is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.models import byobnet
from torch import nn
from torchvision.models import _api, convnext, vision_transformer

from dist_train.config import BackboneConfig
from dist_train.errors import UserError
from dist_train.models.backbones import Pretrained, build, open_pretrained
from dist_train.models.backbones.ours import untrained

State = dict[str, torch.Tensor]


@dataclass
class Case:
    """A library's network with random weights, and a file of them."""

    source: str
    network: nn.Module
    classifier: str
    size: int
    weights: Path

    def open(self, **options: Any) -> Pretrained:
        return open_pretrained(BackboneConfig(source=self.source, weights=self.weights, size=self.size, **options))


def randomise(network: nn.Module) -> nn.Module:
    """Give each tensor values of its own, so that no two can be taken for each other."""
    torch.manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor), alpha=0.02)
    return network.eval()


def small_vit(**options: Any) -> nn.Module:
    """Return torchvision's ViT as vit_b_16, but of two narrow layers."""
    options.pop("weights")
    size = options.pop("image_size", 224)
    return vision_transformer.VisionTransformer(size, 16, 2, 3, 48, 96, **options)


def small_convnext(**options: Any) -> nn.Module:
    """Return torchvision's ConvNeXt as convnext_tiny, but narrow."""
    options.pop("weights")
    blocks = [convnext.CNBlockConfig(16, 32, 1), convnext.CNBlockConfig(32, 48, 2), convnext.CNBlockConfig(48, None, 1)]
    return convnext.ConvNeXt(blocks, **options)


@pytest.fixture(scope="module")
def small_torchvision() -> Any:
    """Make torchvision's names mean smaller networks, with the weights' transforms of the large ones."""
    with pytest.MonkeyPatch.context() as patch:
        for name, small in (("vit_b_16", small_vit), ("convnext_tiny", small_convnext)):
            patch.setitem(_api.BUILTIN_MODELS, name, functools.wraps(_api.BUILTIN_MODELS[name])(small))
        yield


CASES = {
    "timm:mobilenetv3_small_050": ("classifier", 64, {}),
    "timm:resnet10t": ("fc", 64, {}),
    "timm:convnext_atto.d2_in1k": ("head.fc", 64, {}),
    "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k": ("head", 32, {"img_size": 32}),
    "timm:tf_efficientnet_lite0": ("classifier", 64, {}),
    "torchvision:resnet18": ("fc", 64, {}),
    "torchvision:convnext_tiny": ("classifier.2", 64, {}),
    "torchvision:vit_b_16.IMAGENET1K_SWAG_LINEAR_V1": ("heads.head", 64, {"image_size": 64}),
    "torchvision:efficientnet_b0.IMAGENET1K_V1": ("classifier.1", 64, {}),
}


@pytest.fixture(scope="module")
def case_of(tmp_path_factory: pytest.TempPathFactory, small_torchvision: None) -> Callable[[str], Case]:
    """Return a function that makes a case of a source, once."""

    @functools.cache
    def make(source: str) -> Case:
        classifier, size, options = CASES[source]
        library, _, name = source.partition(":")
        name = name.partition(".")[0]
        network = (
            timm.create_model(name, **options)
            if library == "timm"
            else torchvision.models.get_model(name, weights=None, **options)
        )
        weights = tmp_path_factory.mktemp("weights") / "network.safetensors"
        save_file(randomise(network).state_dict(), weights)
        return Case(source, network, classifier, size, weights)

    return make


@pytest.mark.parametrize("source", CASES)
def test_features_and_logits_are_the_librarys_own(case_of: Callable[[str], Case], source: str) -> None:
    case = case_of(source)
    opened = case.open()
    images = torch.randn(2, 3, case.size, case.size)
    given: list[torch.Tensor] = []
    layer = case.network.get_submodule(case.classifier)
    hook = layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        logits = case.network(images)
        assert torch.equal(opened.backbone.features(images), given[0])
        assert torch.equal(opened.backbone(images), logits)
    hook.remove()
    assert opened.backbone.dim == given[0].shape[1]
    assert opened.preprocessing.size == case.size
    assert opened.classes is not None and len(opened.classes) == 1000 and opened.classes[0] == "n01440764"
    assert opened.notes == ()


@pytest.mark.parametrize("source", [*CASES, "ours"])
def test_the_architecture_is_enough_to_build_the_network(case_of: Callable[[str], Case], source: str) -> None:
    backbone = untrained("resnet10", 3, small_stem=True).eval() if source == "ours" else case_of(source).open().backbone
    size = 32 if source == "ours" else case_of(source).size
    again = build(json.loads(json.dumps(backbone.architecture))).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        assert torch.equal(again(images), backbone(images))


def test_an_architecture_of_an_old_checkpoint_is_ours() -> None:
    assert build({"name": "resnet10", "num_classes": 3}).dim == 512


@pytest.mark.parametrize("source", CASES)
def test_layers_go_from_the_images_to_the_activations(case_of: Callable[[str], Case], source: str) -> None:
    backbone = case_of(source).open().backbone
    layers = backbone.layers()
    ordered = [parameter for _, parameters in layers for parameter in parameters]
    assert {id(parameter) for parameter in ordered} == {id(parameter) for parameter in backbone.body.parameters()}
    assert len(ordered) == len({id(parameter) for parameter in ordered})
    names = [name for name, _ in layers]
    assert len(names) == len(set(names)) > 2
    for name, parameters in layers:
        assert any(
            parameter is mine for parameter in parameters for mine in backbone.body.get_submodule(name).parameters()
        )


def test_layers_are_blocks(case_of: Callable[[str], Case]) -> None:
    def names(source: str) -> list[str]:
        return [name for name, _ in case_of(source).open().backbone.layers()]

    assert names("torchvision:resnet18") == ["conv1", *(f"layer{stage}.{block}" for stage in "1234" for block in "01")]
    vit = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert names(vit) == ["patch_embed", *(f"blocks.{number}" for number in range(12))]
    first = {id(parameter) for parameter in case_of(vit).open().backbone.layers()[0][1]}
    assert len(first) == 4  # class token, position embeddings, and the convolution's weight and bias
    assert names("torchvision:vit_b_16.IMAGENET1K_SWAG_LINEAR_V1") == [
        "conv_proj", "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1",
    ]  # fmt: skip


def test_a_new_head_has_the_wanted_rows(case_of: Callable[[str], Case]) -> None:
    backbone = case_of("timm:mobilenetv3_small_050").open().backbone
    backbone.set_head(7)
    assert backbone.head.weight.shape == (7, 1024)
    assert build(backbone.architecture).head.weight.shape == (7, 1024)


def test_position_embeddings_are_resized_as_the_libraries_do_it(case_of: Callable[[str], Case]) -> None:
    case = case_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    state = case.network.state_dict()
    overlay = {"state_dict": state, "input_size": (3, 32, 32)}
    reference = timm.create_model("vit_tiny_patch16_224", pretrained=True, img_size=64, pretrained_cfg_overlay=overlay)
    opened = open_pretrained(BackboneConfig(source=case.source, weights=case.weights, size=64))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(opened.backbone(images), reference.eval()(images), atol=1e-5)

    case = case_of("torchvision:vit_b_16.IMAGENET1K_SWAG_LINEAR_V1")
    resized = vision_transformer.interpolate_embeddings(96, 16, dict(case.network.state_dict()))
    larger = torchvision.models.get_model("vit_b_16", weights=None, image_size=96).eval()
    larger.load_state_dict(resized)
    opened = open_pretrained(BackboneConfig(source=case.source, weights=case.weights, size=96))
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(opened.backbone(images), larger(images))


def test_a_layout_that_timm_converts_is_taken(case_of: Callable[[str], Case], tmp_path: Path) -> None:
    case = case_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    state = {f"visual.trunk.{name}": tensor for name, tensor in case.network.state_dict().items()}
    head = {name: state.pop(f"visual.trunk.head.{name}") for name in ("weight", "bias")}  # OpenCLIP has it elsewhere
    torch.save({**state, "visual.head.proj.weight": head["weight"], "logit_scale": torch.ones(())}, tmp_path / "a.pt")
    opened = open_pretrained(BackboneConfig(source=case.source, weights=tmp_path / "a.pt", size=32))
    dino = {**case.network.state_dict(), "mask_token": torch.zeros(1, 192)}
    torch.save({name: tensor for name, tensor in dino.items() if "head" not in name}, tmp_path / "b.pt")
    other = open_pretrained(BackboneConfig(source=case.source, weights=tmp_path / "b.pt", size=32))
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = case.network.forward_head(case.network.forward_features(images), pre_logits=True)
        assert torch.equal(opened.backbone.features(images), wanted)
        assert torch.equal(other.backbone.features(images), wanted)
    assert other.classes is None


@pytest.mark.parametrize("missing", ["blocks.3.norm1.bias", "blocks.3.mlp.fc1.bias", "norm.weight", "cls_token"])
def test_a_converted_layout_without_one_tensor_is_refused(
    missing: str, case_of: Callable[[str], Case], tmp_path: Path
) -> None:
    """timm would start from zeros or ones in its place."""
    case = case_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    state = {name: tensor for name, tensor in case.network.state_dict().items() if name != missing}
    torch.save({name: tensor for name, tensor in state.items() if "head" not in name}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=f"not the weights of timm:vit_tiny.*{missing}"):
        open_pretrained(BackboneConfig(source=case.source, weights=tmp_path / "a.pt", size=32))


def test_a_network_that_resizes_embeddings_with_every_image_takes_weights_of_its_own_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, whole = "resnet50_clip", byobnet.model_cfgs["resnet50_clip"]
    blocks = tuple(replace(block, d=1, c=block.c // 8) for block in whole.blocks)
    monkeypatch.setitem(byobnet.model_cfgs, name, replace(whole, blocks=blocks))
    network, path = randomise(timm.create_model(name)), tmp_path / "clip.safetensors"
    save_file(network.state_dict(), path)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        wanted = network.forward_head(network.forward_features(images), pre_logits=True)
        opened = open_pretrained(BackboneConfig(source=f"timm:{name}.openai", weights=path, size=96))
        assert torch.equal(opened.backbone.features(images), wanted)
        again = build(json.loads(json.dumps(opened.backbone.architecture))).eval()
        again.load_state_dict(opened.backbone.state_dict())
        assert torch.equal(again.features(images), wanted)
    assert opened.preprocessing.size == 96
    save_file({key: tensor for key, tensor in network.state_dict().items() if key != "head.q.bias"}, path)
    for size in (96, 224):
        with pytest.raises(UserError, match=r"not the weights of timm:resnet50_clip\.openai: .*head\.q\.bias"):
            open_pretrained(BackboneConfig(source=f"timm:{name}.openai", weights=path, size=size))


def test_an_image_tower_gives_features_before_its_projection(tmp_path: Path) -> None:
    name = "test_vit.r160_in1k" if "test_vit" in timm.list_models("test_vit*") else "vit_tiny_patch16_224"
    name = name.partition(".")[0]
    facts = timm.get_pretrained_cfg("vit_base_patch32_clip_224.openai")
    assert facts.num_classes == 512  # CLIP's projection, not a classifier
    network = randomise(timm.create_model(name, num_classes=512, img_size=32))
    from dist_train.models.backbones import timm_source

    own = {**timm_source.facts_of(name), "num_classes": 512, "input_size": (3, 32, 32)}
    path = tmp_path / "clip.safetensors"
    save_file(network.state_dict(), path)
    opened = timm_source.opened(own, f"timm:{name}", path, dict(network.state_dict()), 32)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        wanted = network.forward_head(network.forward_features(images), pre_logits=True)
        assert torch.equal(opened.backbone.features(images), wanted)
    assert opened.classes is None and opened.backbone.head.out_features == 0
    assert opened.notes == ("head is left aside: it is no linear classifier of known classes",)
