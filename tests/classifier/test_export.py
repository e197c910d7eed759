"""Exported models answer like the model, in other programs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision
from safetensors import safe_open
from torchvision.models.resnet import BasicBlock, ResNet

from dist_train import Classifier, UserError
from dist_train.classifier import export
from dist_train.classifier.photos import Preprocess
from dist_train.config.backbone import Preprocessing

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from bench_adapt import random_activations, random_model

SIZES = [(1, 32, 32), (3, 75, 40), (2, 301, 400), (1, 20, 500)]


def photos(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.RandomState(height).randint(0, 256, (batch, height, width, 3), np.uint8)


def adapted(models: Path, method: str, rule: str = "max") -> Classifier:
    model = Classifier.load(models / method)
    model.add_class("one", photos(1, 50, 60)[0])
    model.add_class("three", list(photos(3, 41, 50)))
    model.rule = rule
    return model


def answers_of_both(
    session: onnxruntime.InferenceSession, model: Classifier, size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Return scores and probabilities of an ONNX session, and the model's own scores, of the same photos."""
    pixels = photos(*size)
    scores, shares, _ = session.run(None, {"images": pixels})
    return scores, shares, model.logits(list(pixels))


@pytest.mark.parametrize("method, rule", [("phi2", "max"), ("phi2", "mean"), ("phi2cal", "max"), ("phi_plus", "max"),
                                          ("phi_plus_plda", "max")])  # fmt: skip
def test_onnx_answers_like_the_model(method: str, rule: str, models: Path, tmp_path: Path) -> None:
    model = adapted(models, method, rule)
    export.write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for size in SIZES:
        scores, shares, wanted = answers_of_both(session, model, size)
        assert scores.shape == (size[0], 8)
        assert np.abs(scores - wanted.numpy()).max() < 1e-3 * np.abs(scores).max()
        assert np.abs(shares - model.head().probabilities(wanted).numpy()).max() < 1e-3
    about = session.get_modelmeta().custom_metadata_map
    assert [entry["name"] for entry in json.loads(about["classes"])][6:] == ["one", "three"]
    assert json.loads(about["preprocessing"])["size"] == 32


@pytest.mark.parametrize(
    "spec",
    [
        Preprocessing(resize=35, size=32, interpolation="bicubic", mean=(0.5, 0.4, 0.3), std=(0.5, 0.4, 0.3)),
        Preprocessing(resize=32, size=32, interpolation="bicubic", squash=True),
    ],
    ids=["crop", "squash"],
)
def test_onnx_and_the_folder_keep_the_preprocessing_of_another_network(
    spec: Preprocessing, untrained_model: Path, tmp_path: Path
) -> None:
    model = Classifier.load(untrained_model, "cpu")
    model.network = replace(model.network, preprocess=Preprocess(spec).eval())
    model.save(tmp_path / "model")
    model = Classifier.load(tmp_path / "model", "cpu")
    assert model.network.preprocess.spec == spec
    export.write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for size in SIZES:
        scores, _, wanted = answers_of_both(session, model, size)
        assert np.abs(scores - wanted.numpy()).max() < 1e-3 * np.abs(scores).max()
    about = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert about["interpolation"] == "bicubic, antialiased" and about["squash"] is spec.squash
    assert about["mean"] == list(spec.mean) and about["std"] == list(spec.std)


@pytest.mark.parametrize("method, rule", [("phi2", "mean"), ("phi1", "rows"), ("phi2cal", "rows")])
def test_torchvision_loads_equal_logits(method: str, rule: str, resnet_models: Path, tmp_path: Path) -> None:
    model = adapted(resnet_models, method, rule)
    line = export.write_torchvision(model, tmp_path / "m.pth")
    assert "BasicBlock, [1, 1, 1, 1], num_classes=8)" in line
    network = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=8)
    network.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    images = [torch.from_numpy(image).permute(2, 0, 1) for size in SIZES for image in photos(*size)]
    with torch.inference_mode():
        logits = network.eval()(model.network.preprocess.batch(images))
    assert torch.allclose(logits, model.logits(images), atol=1e-4)
    about = json.loads((tmp_path / "m.pth.json").read_text())
    assert [entry["name"] for entry in about["classes"]] == [entry.name for entry in model.classes]


def test_resnet50_of_torchvision_takes_the_weights(tmp_path: Path) -> None:
    model = random_model("resnet50", "phi2", random_activations(5, 4, 2048), 64, 64, torch.device("cpu"))
    line = export.write_torchvision(model, tmp_path / "m.pth")
    assert "torchvision.models.resnet50(num_classes=5)" in line
    network = torchvision.models.resnet50(num_classes=5)
    network.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    images = [torch.from_numpy(photos(1, 64, 80)[0]).permute(2, 0, 1)]
    with torch.inference_mode():
        logits = network.eval()(model.network.preprocess.batch(images))
    assert torch.allclose(logits, model.logits(images), atol=1e-4)


@pytest.mark.parametrize(
    "method, wanted",
    [("phi2", "class 'three' counts by the largest response of its photos.*--rule mean or rows"),
     ("phi_plus", "phi_plus classifies by cosine.*--format onnx or safetensors.* --method phi2 --rule mean"),
     ("phi_plus_plda", "phi_plus_plda scores by densities.*take --format onnx.* RUN --method phi2 --rule mean")],
)  # fmt: skip
def test_torchvision_refuses_what_a_linear_layer_cannot(
    method: str, wanted: str, resnet_models: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=wanted):
        export.write_torchvision(adapted(resnet_models, method), tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


def test_safetensors_refuses_densities(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--format safetensors: phi_plus_plda scores by densities.*--method phi_plus"):
        export.write_safetensors(adapted(models, "phi_plus_plda"), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_torchvision_has_no_conv4(models: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it has no conv4; take --format onnx or safetensors"):
        export.write_torchvision(adapted(models, "phi1", "rows"), tmp_path / "m.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["phi2", "phi_plus"])
def test_safetensors_score_as_documented(method: str, models: Path, tmp_path: Path) -> None:
    model = adapted(models, method)
    export.write_safetensors(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    query = model.activations(list(photos(4, 50, 70))).numpy()
    wanted = model.logits(list(photos(4, 50, 70))).numpy()
    if header["query_scale"]:
        query = float(header["query_scale"]) * query / np.linalg.norm(query, axis=1, keepdims=True)
    scores = [
        [(tensors["rows"] @ row + tensors["offset"])[tensors["owner"] == c].max() for c in range(8)] for row in query
    ]
    assert np.allclose(scores, wanted, atol=1e-4)
    assert tensors["0.0.weight"].shape == (64, 3, 3, 3) and len(json.loads(header["classes"])) == 8
