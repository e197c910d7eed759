"""When a model is not sure: thresholds that 95% of known photos pass, probabilities that are right, familiarity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dist_train import Classifier, UserError
from dist_train.classifier.doubt import Doubt
from dist_train.classifier.doubt_fit import Known, fitted_doubt
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.heads.choice import HEADS
from dist_train.classifier.predicted import PredictedHead

DIM, CLASSES = 40, 6
CENTRES = torch.randn(20, DIM, generator=torch.Generator().manual_seed(7))


def photos_of(label: int, count: int, seed: int) -> torch.Tensor:
    """Return activations [count, DIM] of a class; classes from CLASSES on are of no model."""
    noise = torch.randn(count, DIM, generator=torch.Generator().manual_seed(1000 * seed + label))
    return 2 + CENTRES[label] + 1.6 * noise


def known_of(count: int, seed: int = 0) -> Known:
    draws = torch.Generator().manual_seed(seed)
    scores, labels = torch.randn(count, 5, generator=draws) * 4, torch.arange(count) % 5
    return Known(scores, torch.rand(count, generator=draws), labels)


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 400, 1000])
def test_95_percent_of_known_photos_pass_both_thresholds_together(count: int) -> None:
    known = known_of(count)
    doubt = fitted_doubt(known)
    probability = (known.scores.double() / doubt.temperature).softmax(1).amax(1)
    familiar = doubt.familiarity(known.nearness.numpy())
    sure = [doubt.sure(*pair) for pair in zip((probability + 1e-9).tolist(), familiar, strict=True)]
    assert 0.95 - 1e-9 <= np.mean(sure) <= 0.96 or (count < 25 and all(sure)) or np.mean(sure) == 1 - 1 / count
    if count == 1000:  # neither threshold does all the work
        for low in (probability < doubt.threshold - 1e-9, torch.tensor(familiar) < doubt.familiar):
            assert 0.02 < low.double().mean() < 0.035


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("count", [2, 7, 15])
def test_a_photo_unlike_all_of_few_known_photos_is_not_sure(count: int, equal: bool) -> None:
    for seed in range(6):  # the roundings of 6 lowest photos, up and down
        known = known_of(count, seed)
        nearness = torch.full_like(known.nearness, 0.7) if equal else known.nearness
        doubt = fitted_doubt(Known(known.scores, nearness, known.labels))
        assert all(doubt.sure(1.0, familiar) for familiar in doubt.familiarity(nearness.numpy()))
        [stranger] = doubt.familiarity(nearness.numpy().min()[None] - 0.1)
        assert stranger == 0 and not doubt.sure(1.0, stranger)


def test_each_class_counts_the_same() -> None:
    """Of a class of 900 and a class of 100 photos, the small one may lose half of the 5%, and not a tenth."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 900 + [1] * 100)
    scores = torch.randn(1000, 2, generator=draws)
    scores[labels == 1] *= 0.2  # the small class has smaller probabilities
    nearness = torch.ones(1000)
    doubt = fitted_doubt(Known(scores, nearness, labels), temperature=1.0)
    low = (scores.double() / doubt.temperature).softmax(1).amax(1) < doubt.threshold - 1e-9
    assert 0.05 < low[labels == 1].double().mean() < 0.1 and low[labels == 0].double().mean() < 0.04


def test_without_known_photos_all_is_sure() -> None:
    doubt = fitted_doubt(Known(torch.empty(0, 3), torch.empty(0), torch.empty(0, dtype=torch.int64)))
    assert doubt == Doubt() and doubt.sure(0.0, 0.0) and doubt.familiarity(np.zeros(2)) == [100.0, 100.0]


@pytest.mark.parametrize("head", list(HEADS))
def test_strangers_are_doubted_more_than_known_photos(head: str) -> None:
    shown = [photos_of(label, 20, 1) for label in range(CLASSES)]
    fitted, _ = FittedHeads(head).make((), shown)
    known = torch.cat([photos_of(label, 100, 2) for label in range(CLASSES)])
    strange = torch.cat([photos_of(label, 100, 2) for label in range(CLASSES, 12)])
    rates = []
    for activations in (known, strange):
        shares = fitted.probabilities(fitted.scores(activations)).amax(1)
        familiar = fitted.doubt.familiarity(fitted.nearness(activations).numpy())
        sure = [fitted.doubt.sure(*pair) for pair in zip(shares.tolist(), familiar, strict=True)]
        probable = (shares >= fitted.doubt.threshold).double().mean()
        rates.append(
            [100 * float(probable), 100 * np.mean(np.array(familiar) >= fitted.doubt.familiar), 100 * np.mean(sure)]
        )
    assert all(94 < rate < 99.7 for rate in rates[0][:2]) and 90 < rates[0][2] < 98, rates
    assert rates[1][2] < min(75, *rates[1][:2]), rates


def test_the_familiarity_is_the_share_of_known_photos_that_look_less_so() -> None:
    """Photos were left out of the means that they are compared with: else new photos would seem less familiar."""
    shown = [photos_of(label, 30, 1) for label in range(CLASSES)]
    head, _ = FittedHeads("mean").make((), shown)
    assert head.means is not None
    cosines = []
    for label, own in enumerate(shown):
        for n in range(len(own)):
            others = [F.normalize(x, dim=1) for x in shown]
            others[label] = torch.cat([others[label][:n], others[label][n + 1 :]])
            means = F.normalize(torch.stack([x.mean(0) for x in others]), dim=1)
            cosines.append(float((means @ F.normalize(own[n], dim=0)).max()))
    assert np.allclose(np.percentile(cosines, np.arange(101)), head.doubt.percentiles, atol=1e-5)
    fresh = torch.cat([photos_of(label, 300, 3) for label in range(CLASSES)])
    assert 45 < np.mean(head.doubt.familiarity(head.nearness(fresh).numpy())) < 55


@pytest.mark.parametrize("method", ["phi2", "phi_plus"])
def test_a_model_from_a_run_has_a_temperature_that_lowers_the_log_loss(method: str, models: Path) -> None:
    model = Classifier.load(models / method)
    assert isinstance(model.maker, PredictedHead) and model.maker.images is not None
    images, doubt = model.maker.images, model.head().doubt
    assert len(images.means) == 6 and len(images.labels) == 36 and len(doubt.percentiles) == 101
    scores = model.scores(images.activations)
    loss = lambda temperature: float(  # noqa: E731
        -(scores / temperature).log_softmax(1)[torch.arange(36), images.labels].mean()
    )
    assert 0 < doubt.temperature != 1 and loss(doubt.temperature) <= loss(1.0) + 1e-3
    answers = model.answers(images.activations)
    assert sum(answer.sure for answer in answers) >= 34  # 95% of 36, rounded up to photos
    assert answers[0][0].probability == pytest.approx(float((scores[0] / doubt.temperature).softmax(0).max()), abs=1e-5)


def test_photos_of_added_classes_are_left_out_in_turn(models: Path) -> None:
    """The scores of a photo that is left out are those of a model that never had it."""
    from dist_train.classifier.known import _known

    model = Classifier.load(models / "phi2")
    dim = model.network.backbone.dim
    photos = [torch.rand(4, dim, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    for n, own in enumerate(photos):
        model.add_activations(f"new {n}", own)
    maker, head = model.maker, model.head()
    assert isinstance(maker, PredictedHead)
    kept = [own.half().float() for own in photos]
    none = torch.empty(0, dim), torch.empty(0, dtype=torch.int64)
    known = _known(head, none, 6, kept, lambda stacks: maker.phi.novel_rows(stacks, maker.rule))
    assert known.labels.tolist() == [6] * 4 + [7] * 4
    without = Classifier.load(models / "phi2")
    without.add_activations("new 0", torch.cat([photos[0][:1], photos[0][2:]]))
    without.add_activations("new 1", photos[1])
    assert torch.allclose(known.scores[1], without.scores(kept[0][1:2])[0], atol=1e-3)
    assert float(known.nearness[1]) == pytest.approx(float(without.head().nearness(kept[0][1:2])), abs=1e-4)


def test_min_confidence_overrides_both_thresholds(models: Path) -> None:
    model = Classifier.load(models / "phi2")
    photo = torch.rand(1, model.network.backbone.dim)
    probability = model.answers(photo)[0][0].probability
    for least, sure in ((probability - 0.01, True), (min(1, probability + 0.01), False)):
        model.min_confidence = least
        assert model.answers(photo)[0].sure == sure == model.copy().answers(photo)[0].sure
        assert model.threshold == least
    for wrong in (1.5, -0.1, float("nan"), "0.5", True, [0.5], torch.tensor(0.5)):
        with pytest.raises(ValueError, match=r"min_confidence .*: must be a number from 0 to 1") as refused:
            model.min_confidence = wrong
        assert isinstance(refused.value, UserError)
    model.min_confidence = np.float32(0.5)
    assert model.threshold == 0.5
    model.min_confidence = None
    assert model.threshold == model.head().doubt.threshold


def test_the_doubt_is_kept_and_a_model_without_it_is_sure(models: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models / "phi2", tmp_path / "model"))
    about = json.loads((folder / "model.json").read_text())
    doubt = Classifier.load(folder).head().doubt
    assert about["doubt"]["threshold"] == pytest.approx(doubt.threshold, abs=1e-5)
    assert Classifier.load(folder).threshold == doubt.threshold > 0
    for key, value in (("threshold", 1.5), ("percentiles", [0.5]), ("temperature", 0)):
        damaged = {**about, "doubt": {**about["doubt"], key: value}}
        (folder / "model.json").write_text(json.dumps(damaged))
        with pytest.raises(UserError, match=f"doubt.*{key}|{key}"):
            Classifier.load(folder)
