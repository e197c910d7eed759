"""Every product behind a table or an answer is exact, whatever the process allowed before; each product is observed at
the moment it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_train.classifier.classifier import Classifier
from dist_train.classifier.from_run import from_run, held_out_activations
from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot import nearest
from dist_train.models.backbones import Backbone
from dist_train.runs.run import Run, open_run
from dist_train.stages import extract, learn, scoring
from dist_train.stages.pretrain import pretrain
from dist_train.training.precision import exact_products, round_products, tuned_convolutions

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addmv", "mv", "dot", "convolution", "linear", "einsum", "matmul"}


def rounded() -> tuple[str, str]:
    """Return how GPUs would round float32 products and convolutions."""
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision


class Products(TorchDispatchMode):
    """Record for each product how GPUs would round it, and the types of its factors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[str], set[torch.dtype]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            kinds = {tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor)}
            self.seen.append((name, set(rounded()), kinds))
        return func(*args, **(kwargs or {}))

    @property
    def exact(self) -> bool:
        assert self.seen, "no product was computed"
        return all(how == {"ieee"} and kinds <= {torch.float32, torch.float64} for _, how, kinds in self.seen)


@pytest.fixture(params=["older interface", "newer interface", "both"])
def roundest(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Return a function that makes this process round all that can be rounded, as other code may do, by each of
    PyTorch's interfaces."""

    def start() -> None:
        if request.param != "newer interface":
            round_products(True)
        if request.param != "older interface":
            torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
            torch.backends.cuda.matmul.fp32_precision = "tf32"
            torch.backends.cudnn.conv.fp32_precision = "tf32"  # type: ignore[attr-defined]

    yield start
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True  # PyTorch's defaults


METHODS = ["nn", "nn1", "mean", "imprint", "ridge", "phi1", "phi2", "phi2star", "phi2cal", "nn_oracle"]
OTHERS = ["finetune", "logistic", "child", "linear_oracle"]


@pytest.mark.parametrize("name", [*METHODS, *OTHERS])
def test_rows_of_the_table(
    name: str, whole_run: Run, roundest: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A first look at all neighbours may be in bfloat16; what decides is scored exactly (fewshot/test_nearest.py).
    monkeypatch.setattr(nearest, "fastest_type", lambda device: torch.float32)
    options = {f"{key}_steps": 2.0 for key in OTHERS}
    evaluate = replace(whole_run.config.evaluate, draws=2, methods=METHODS + OTHERS, options=options)
    run = replace(whole_run, config=replace(whole_run.config, evaluate=evaluate))
    roundest()
    with Products() as products:
        joint = scoring.JointScoring(run, Context())
        joint.score(name, StopFlag(Context()), Silent())
    assert products.exact, products.seen


class Silent:
    def update(self, count: int) -> None:
        pass


def test_episodes(whole_run: Run, roundest: Callable[[], None]) -> None:
    evaluate = replace(whole_run.config.evaluate, draws=2, protocol="episodes", ways=2, shots=[1], queries=2)
    run = replace(whole_run, config=replace(whole_run.config, evaluate=evaluate))
    roundest()
    with Products() as products:
        scoring.EpisodeScoring(run, Context()).score("phi2", StopFlag(Context()), Silent())
    assert products.exact, products.seen


def test_accuracy_that_learn_logs(whole_run: Run, roundest: Callable[[], None]) -> None:
    bank = learn.open_bank(whole_run, Context())
    model = learn.LEARNED["phi2"].build("phi2", bank.means, bank.head, whole_run.config.learn)
    roundest()
    before = rounded()
    with Products() as products:
        learn.base_top1(model, bank, Context())
    assert products.exact, products.seen
    assert rounded() == before


@pytest.mark.parametrize("method", ["phi2", "phi2cal", "phi_plus"])
def test_answers_of_a_model(method: str, whole_run: Run, tmp_path: Path, roundest: Callable[[], None]) -> None:
    """They are exact even where the process starts to round after the model was opened, and within an autocast."""
    photo, other = (torch.randint(0, 255, (3, 40, 40), dtype=torch.uint8) for _ in range(2))
    roundest()
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        from_run(whole_run.config, method).save(tmp_path / "model")
        model = Classifier.load(tmp_path / "model")
        for step in (
            lambda: model.add_class("new", [photo, other]),
            lambda: model.predict(photo),
            lambda: model.remove_class("new"),
            lambda: model.head(),
            lambda: model.base_accuracy(*held_out_activations(whole_run.config)),
        ):
            roundest()
            step()
    assert products.exact, [product for product in products.seen if product[1:] != ({"ieee"}, {torch.float32})]


def test_class_means_are_sums_in_float64(whole_run: Run) -> None:
    """NumPy computes them, without a product."""
    with Products() as products:
        table = extract.load(whole_run.dir / "extract", "base_train")
        means = table.means()
    assert not products.seen
    assert means[0] == pytest.approx(table.rows[: table.offsets[1]].astype("float64").mean(0), rel=1e-6)


def test_an_exact_block_restores_the_state_before_it(roundest: Callable[[], None]) -> None:
    """What one interface sets, the other can read; PyTorch itself refuses some mixed states."""
    roundest()
    before = rounded()
    with pytest.raises(ZeroDivisionError), exact_products():
        assert rounded() == ("ieee", "ieee")
        assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert rounded() == before
    for allowed in (True, False):
        round_products(allowed)
        assert rounded() == (("tf32",) * 2 if allowed else ("ieee",) * 2)
        assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed


@pytest.mark.parametrize("chosen", ["medium", "high", "highest"])
def test_an_exact_block_restores_the_precision_of_products(chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    try:
        with exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == chosen
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_convolutions_are_tuned_in_training_only(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not tuned in the evaluation within training, nor after training, nor after it fails."""
    seen: set[tuple[bool, bool]] = set()
    forward = Backbone.forward

    def watched(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        seen.add((self.training, torch.backends.cudnn.benchmark))
        return forward(self, images)

    monkeypatch.setattr(Backbone, "forward", watched)
    assert not torch.backends.cudnn.benchmark
    pretrain(open_run(config), Context(), StopFlag(Context()))
    assert seen == {(True, True), (False, False)}
    assert not torch.backends.cudnn.benchmark
    with tuned_convolutions(True):
        with pytest.raises(ZeroDivisionError), tuned_convolutions(False):
            raise ZeroDivisionError
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
