"""A measurement of a model, beside the same figures of scikit-learn."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, roc_auc_score, top_k_accuracy_score

from dist_train import Classifier, UserError
from dist_train.classifier.fitted import FittedHeads
from dist_train.classifier.head import Head
from dist_train.classifier.measurement_page import confusion_matrix as matrix_of
from dist_train.classifier.measurement_page import measurement_html
from dist_train.classifier.measuring import Measurement, csv_text, measure
from dist_train.classifier.network import Network
from dist_train.classifier.photos import Preprocess
from dist_train.config.backbone import Preprocessing
from dist_train.models.backbones import build

NAMES = [f"class {n}" for n in range(8)]


def photos_of(label: int, count: int, seed: int) -> torch.Tensor:
    """Return activations [count, 512] of a class; classes overlap."""
    centre = torch.randn(512, generator=torch.Generator().manual_seed(label)) * 0.12
    return 0.5 + centre + torch.randn(count, 512, generator=torch.Generator().manual_seed(1000 + 100 * seed + label))


@pytest.fixture(scope="module")
def model() -> Classifier:
    """Return a model of photos alone with eight classes; it must not be changed."""
    backbone = build({"name": "resnet10", "num_classes": 0, "small_stem": False})
    network = Network(backbone, Preprocess(Preprocessing(resize=36, size=32))).on(torch.device("cpu"))
    model = Classifier(network, FittedHeads("mean"))
    for label, name in enumerate(NAMES):
        model.add_activations(name, photos_of(label, 6, 0))
    return model


@pytest.fixture(scope="module")
def shown(model: Classifier) -> tuple[torch.Tensor, list[int], Measurement]:
    """Return photos of seven of the classes with their places, and the measurement of them beside photos of none."""
    counts = [9, 4, 12, 9, 1, 9, 9]
    photos = torch.cat([photos_of(label, count, 1) for label, count in enumerate(counts)])
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    names = [f"{n}.jpg" for n in range(len(labels))]
    others = torch.cat([photos_of(label, 5, 2) for label in range(20, 26)])
    return photos, labels, measure(model, photos, [NAMES[n] for n in labels], names, others)


def test_a_photo_is_scored_once(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos of classes and of none, in parts of a thousand: the head sees each of them once."""
    model.head()
    scored, whole = list[int](), Head.scores

    def scores(self: Head, activations: torch.Tensor) -> torch.Tensor:
        scored.append(len(activations))
        return whole(self, activations)

    monkeypatch.setattr(Head, "scores", scores)
    measure(model, photos_of(0, 1500, 1), [NAMES[0]] * 1500, (), photos_of(20, 7, 1))
    assert scored == [1000, 500, 7]


def test_the_figures_are_those_of_scikit_learn(
    model: Classifier, shown: tuple[torch.Tensor, list[int], Measurement]
) -> None:
    photos, labels, m = shown
    shares = model.scores(photos).softmax(1).numpy()
    answers, best = shares.argmax(1), shares.max(1)
    right = answers == labels
    assert 0.2 < right.mean() < 0.95  # else the test says little
    assert m.top1 == pytest.approx(100 * right.mean()) and m.said == pytest.approx(100 * best.mean())
    assert m.top5 == pytest.approx(100 * top_k_accuracy_score(labels, shares, k=5, labels=range(8)))
    counts = confusion_matrix(labels, answers, labels=range(8))
    assert m.mean == pytest.approx(100 * np.mean(counts.diagonal()[:7] / counts.sum(1)[:7]))
    assert {(pair.truth, pair.answer): pair.photos for pair in m.confusions} == {
        (NAMES[a], NAMES[b]): counts[a, b] for a in range(8) for b in range(8) if a != b and counts[a, b]
    }
    assert [(row.name, row.photos) for row in m.per_class] == [(NAMES[n], labels.count(n)) for n in range(7)]
    ranks = 1 + (shares > shares[np.arange(len(labels)), labels][:, None]).sum(1)
    assert [result.rank for result in m.results] == ranks.tolist()
    assert m.others is not None
    other = model.scores(torch.cat([photos_of(label, 5, 2) for label in range(20, 26)])).softmax(1).amax(1)
    wanted = roc_auc_score(np.repeat([1, 0], [len(best), 30]), [*best, *other.tolist()])
    assert m.others.auroc_probability == pytest.approx(100 * wanted)


def test_the_calibration_error_compares_what_is_said_with_what_is_right(
    shown: tuple[torch.Tensor, list[int], Measurement],
) -> None:
    m, gaps = shown[2], 0.0
    for tenth in range(10):
        inside = [one for one in m.results if tenth <= 10 * one.probability < tenth + 1]
        gaps += abs(sum(one.probability - one.right for one in inside))
    assert m.calibration_error == pytest.approx(100 * gaps / m.photos) and m.calibration_error > 1
    assert sum(bin.photos for bin in m.bins) == m.photos
    for point in m.curve:
        given = [one for one in m.results if one.probability >= point.threshold]
        assert point.answered == pytest.approx(100 * len(given) / m.photos)
        assert point.right == pytest.approx(100 * np.mean([one.right for one in given]))


def test_intervals_are_those_of_wilson(shown: tuple[torch.Tensor, list[int], Measurement]) -> None:
    from scipy.stats import binomtest

    for row in shown[2].per_class:
        interval = binomtest(round(row.photos * row.top1 / 100), row.photos).proportion_ci(method="wilson")
        assert (row.low, row.high) == pytest.approx((100 * interval.low, 100 * interval.high), abs=0.01)
    m = shown[2]
    assert m.low < m.mean < m.high and m.high - m.low < min(row.high - row.low for row in m.per_class)


def test_a_measurement_goes_to_json_and_csv_and_back(shown: tuple[torch.Tensor, list[int], Measurement]) -> None:
    m = shown[2]
    assert Measurement.from_json(json.loads(json.dumps(m.to_json()))) == m
    rows = csv_text(m).splitlines()
    assert len(rows) == 1 + m.photos + 30 and rows[1].startswith("0.jpg,class 0,")
    with pytest.raises(ValueError, match="top1"):
        Measurement.from_json({**m.to_json(), "top1": "high"})


def test_photos_of_the_model_are_counted(model: Classifier) -> None:
    m = measure(model, torch.cat([photos_of(0, 2, 0), photos_of(0, 3, 1)]), ["class 0"] * 5)
    assert m.known == 2 and [result.known for result in m.results] == [True, True, False, False, False]


def test_a_page_shows_classes_matrix_mistakes_and_charts(shown: tuple[torch.Tensor, list[int], Measurement]) -> None:
    m = shown[2]
    matrix = matrix_of(m)
    assert matrix is not None and sum(map(sum, matrix.counts)) == m.photos
    right = sum(count for n, row in enumerate(matrix.counts) for k, count in enumerate(row) if n == k)
    assert right == sum(result.right for result in m.results)
    page = measurement_html(
        replace(m, known=3), {m.worst(1)[0].photo: "data:image/jpeg;base64,AAAA"}, "A & B", {"a": 1}
    )
    assert page.count("data:image/jpeg;base64,AAAA") == 1 and "A &amp; B" in page
    assert "The model itself has 3 photos of these" in page and page.count('role="img"') == 2
    many = replace(m, per_class=tuple(replace(m.per_class[0], name=f"c{n}") for n in range(40)))
    assert matrix_of(many) is None


@pytest.mark.parametrize(
    ("labels", "fault"),
    [([], "give a label for each"), (["class 0"], "give a label for each"), (["class 0", "owl"], "label 'owl'")],
)
def test_labels_must_be_classes(model: Classifier, labels: list[str], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        measure(model, photos_of(0, 2, 1), labels)


def test_each_photo_has_a_name_or_none_has(model: Classifier) -> None:
    photos = torch.zeros(3, model.network.backbone.dim)
    label = model.classes[0].name
    for names, others in ((["a"], []), ([], ["a"])):
        with pytest.raises(UserError, match=r"1 name of (3 photos|2 other photos)"):
            measure(model, photos, [label] * 3, names, photos[:2], others)
