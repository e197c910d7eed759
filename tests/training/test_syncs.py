"""Steps that are not due for a log line ask the device for no number: the host runs ahead of the GPU.

On a CPU nothing waits, but the same calls are made: they are counted here. The test on a GPU lets PyTorch
itself refuse them, and knows more of them (copies from unpinned memory, ``to("cpu")``).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.optim import lamb
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dist_train.config import LearnConfig, PretrainConfig
from dist_train.data.activations import Activations
from dist_train.data.loading.loader import Batch
from dist_train.distributed.context import Context
from dist_train.distributed.stopping import StopFlag
from dist_train.fewshot.methods import LEARNED
from dist_train.models.backbones.ours import drop_branches, untrained
from dist_train.stages.learn import PredictorTraining, train
from dist_train.training.bank import Bank, StepReader
from dist_train.training.classification import Classification
from dist_train.training.loop import TrainingLoop
from dist_train.training.objective import Objective
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.ddp import SummedGradients
from dist_train.training.strategies.factory import make_strategy
from dist_train.training.strategies.strategy import Strategy
from dist_train.training.window import Window

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "bincount"}
READS |= {"_unique", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"}
"""Operators whose result is a number for the host, or has a number of rows that only the device knows."""
UNSEEN = {"tolist", "numpy", "cpu", "__array__"}
"""Methods whose result is for the host, and that call no operator where the tensor is on the CPU."""


class Reads:
    """Collect the reads of a device's numbers in a ``with`` block, by name.

    Attributes:
        taken: those of each part, ended by ``cut``.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.taken: list[list[str]] = []
        self.paused = False
        self._modes = (Operators(self), Methods(self))

    def __enter__(self) -> Reads:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def add(self, name: str) -> None:
        if not self.paused:
            self.names.append(name)

    def cut(self) -> None:
        self.taken.append(self.names)
        self.names = []


class Operators(TorchDispatchMode):
    """Count operators, also those that PyTorch itself calls deep inside others."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        device = (kwargs or {}).get("device")
        masked = name in ("index", "index_put", "index_put_") and by_mask(args[1])
        moved = name == "_to_copy" and device not in (None, args[0].device)
        if name in READS or masked or moved:
            self.reads.add(name)
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in UNSEEN:
            self.reads.add(func.__name__)
        return func(*args, **(kwargs or {}))


def by_mask(indices: list[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


LOG_EVERY, STEPS = 3, 6


class Watched(Classification):
    """Train on a ready-made batch, and call ``on_step`` after each step's log line."""

    def __init__(self, strategy: Strategy, config: PretrainConfig, batch: Batch) -> None:
        super().__init__(strategy, config, classes=5, seed=0, steps=STEPS)
        self.batch = batch
        self.on_step: Callable[[int], None] = lambda step: None

    def begin(self, start: int) -> None:
        self.batches = (self.batch for _ in range(self.config.accumulate * STEPS))

    def lr(self, step: int) -> float:
        return 0.01

    def evaluates_at(self, step: int) -> bool:
        self.on_step(step)
        return False


Loop = Callable[[Callable[[int], None]], None]


def prepare(device: torch.device, folder: Path, **options: Any) -> tuple[Loop, Strategy]:
    """Return the real loop, with all that a recipe may switch on, as ``loop(on_step)``, and its strategy."""
    config = PretrainConfig(
        model="resnet10", global_batch=8, accumulate=2, mixup=0.2, cutmix=1.0, stochastic_depth=0.5, ema=0.9,
        log_every=LOG_EVERY, checkpoint_every=1000, **options,
    )  # fmt: skip
    context = Context(device=device)
    model = untrained(config.model, 5).to(device)
    drop_branches(model, config.stochastic_depth)
    precision = MixedPrecision(config.precision, device)
    strategy = make_strategy(model, make_optimizer(model, config), precision, config, context)
    images, labels = torch.randn(4, 3, 32, 32, device=device), torch.arange(4, device=device)
    task = Watched(strategy, config, Batch(images, labels, np.arange(4), replaced=1))

    def loop(on_step: Callable[[int], None]) -> None:
        task.on_step = on_step
        TrainingLoop(task, folder, {}, StopFlag(context)).run()

    return loop, strategy


def due(number: int) -> bool:
    return number % LOG_EVERY == 0


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Count numbers that are read from tensors, without those that are on the CPU on a GPU machine too: while images
    are mixed (torchvision draws the share and the box by the CPU's generator, and PyTorch's one_hot looks at
    labels that are on the CPU only), and where timm's LAMB looks at its count of steps."""
    counted = Reads()

    def uncounted(call: Callable[..., Any]) -> Callable[..., Any]:
        def paused(*arguments: Any) -> Any:
            counted.paused = True
            try:
                return call(*arguments)
            finally:
                counted.paused = False

        return paused

    monkeypatch.setattr(Objective, "mix", uncounted(Objective.mix))
    monkeypatch.setattr(lamb, "_get_value", uncounted(lamb._get_value))
    return counted


RECIPES: list[dict[str, Any]] = [
    {"clip_norm": 0.0},
    {"clip_norm": 1.0},
    {"clip_norm": 1.0, "optimizer": "lamb", "loss": "bce", "label_smoothing": 0.0},
    {"optimizer": "lars"},
]


@pytest.mark.filterwarnings("ignore:this CPU emulates bf16")
@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_only_steps_that_are_due_read_numbers(reads: Reads, tmp_path: Path, options: dict[str, Any]) -> None:
    loop, _ = prepare(torch.device("cpu"), tmp_path, **options)
    with reads:
        loop(lambda number: reads.cut())
    assert len(reads.taken) == STEPS
    for number, names in enumerate(reads.taken, 1):
        assert bool(names) == due(number), f"step {number}: {names}"


WAITS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], object]] = {
    "item": lambda loss, logits, labels: loss.item(),
    "float": lambda loss, logits, labels: float(loss),
    "if": lambda loss, logits, labels: 1 if loss > 0 else 2,
    "tolist": lambda loss, logits, labels: loss.tolist(),
    "cpu": lambda loss, logits, labels: loss.cpu(),
    "numpy": lambda loss, logits, labels: loss.detach().numpy(),
    "numpy.asarray": lambda loss, logits, labels: np.asarray(loss.detach()),
    "print": lambda loss, logits, labels: f"{loss}",
    "equal": lambda loss, logits, labels: torch.equal(logits.argmax(1), labels),
    "mask": lambda loss, logits, labels: logits[labels > 1],
    "to a mask": lambda loss, logits, labels: logits.detach().index_put_((labels > 1,), logits.new_zeros(2, 5)),
    "where": lambda loss, logits, labels: torch.where(labels > 1),
    "clip": lambda loss, logits, labels: torch.nn.utils.get_total_norm([logits.detach()], error_if_nonfinite=True),
    "elsewhere": lambda loss, logits, labels: loss.to("meta"),
}


@pytest.mark.parametrize("name", WAITS)
def test_a_read_added_to_the_loop_is_found(
    reads: Reads, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Classification.count

    def reading(
        self: Classification, step: int, window: Window, batch: Batch, loss: torch.Tensor, correct: torch.Tensor
    ) -> None:
        logits = batch.images.flatten(1)[:, :5].clone()  # of the shape that logits have
        WAITS[name](loss, logits, batch.labels)
        count(self, step, window, batch, loss, correct)

    monkeypatch.setattr(Classification, "count", reading)
    loop, _ = prepare(torch.device("cpu"), tmp_path, precision="fp32")
    with reads:
        loop(lambda number: reads.cut())
    assert all(len(names) >= 2 for names in reads.taken), reads.taken  # a read for each of the two passes


def bank(context: Context) -> Bank:
    rng = np.random.default_rng(0)
    table = Activations(rng.random((140, 12)).astype(np.float16), np.arange(140), np.arange(0, 141, 20))
    val = Activations(table.rows[::4], np.arange(35), np.arange(0, 36, 5))
    return Bank(table, val, table.means(), torch.randn(7, 12), context)


LEARN = LearnConfig(steps=80, log_every=10, checkpoint_every=40)  # across the draw of 64 steps
"""In bf16, the default."""


def learned(
    method: str,
    device: torch.device,
    folder: Path,
    on_step: Callable[[int], None],
    patch: pytest.MonkeyPatch,
    config: LearnConfig = LEARN,
) -> None:
    """Run the real loop of ``learn``; ``on_step(number)`` is called right after a step, before its log line."""
    context, add = Context(device=device), Window.add

    def counted(self: Window, number: int, loss: torch.Tensor, sums: torch.Tensor) -> None:
        add(self, number, loss, sums)
        on_step(number)

    patch.setattr(Window, "add", counted)
    train({folder: PredictorTraining(method, StepReader(bank(context), 0), config, context)}, {}, StopFlag(context))


@pytest.mark.filterwarnings("ignore:this CPU emulates bf16")
@pytest.mark.parametrize(("method", "added"), [*((name, False) for name in LEARNED), ("phi2", True)])
def test_learn_reads_numbers_only_in_steps_that_are_due(
    method: str, added: bool, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if added:
        backward = SummedGradients.backward
        monkeypatch.setattr(SummedGradients, "backward", lambda self, loss: (loss.item(), backward(self, loss)))
    with reads:
        learned(method, torch.device("cpu"), tmp_path, lambda number: reads.cut(), monkeypatch)
    after = reads.taken[1:]  # the reads after step 1, 2, ... until the end of the next step
    assert len(after) == LEARN.steps - 1
    for number, names in enumerate(after, 1):
        assert bool(names) == (added or number % LEARN.log_every == 0), f"step {number}: {names}"


class Shapes(TorchDispatchMode):
    """Collect the operators that are called, and the shapes and strides of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [(x.shape, x.stride()) for x in tree_leaves((args, kwargs or {})) if torch.is_tensor(x)]
        self.found.append((func, given))
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:this CPU emulates bf16")
@pytest.mark.parametrize("method", LEARNED)
def test_every_step_of_learn_is_the_same_operations_on_the_same_shapes(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CUDA graph needs it: the graph replays a recorded step for all steps."""
    steps: list[Any] = []
    single_counts: set[int] = set()
    update = PredictorTraining.update

    def watched(
        self: PredictorTraining, chance: torch.Tensor, supports: torch.Tensor, queries: torch.Tensor
    ) -> torch.Tensor:
        single_counts.add(int((chance >= self.config.p_mean).sum()))
        with Shapes() as shapes:
            loss = update(self, chance, supports, queries)
        steps.append(shapes.found)
        return loss

    monkeypatch.setattr(PredictorTraining, "update", watched)
    config = replace(LEARN, steps=8, p_mean=0.5, schedule="release")
    context = Context()
    train({tmp_path: PredictorTraining(method, StepReader(bank(context), 0), config, context)}, {}, StopFlag(context))
    assert len(steps) == 8 and all(step == steps[0] for step in steps)
    assert len(single_counts) > 1 or method in ("phi2star", "triplet")  # never and always single


@pytest.fixture
def refuse() -> Iterator[Callable[[bool], None]]:
    """Return ``refuse(True)``, after which waiting for the GPU is an error."""
    yield lambda on: torch.cuda.set_sync_debug_mode("error" if on else "default")
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


ON_GPU: list[dict[str, Any]] = [
    {"precision": "bf16"},
    {"precision": "bf16", "clip_norm": 1.0},
    {"precision": "fp16", "clip_norm": 1.0},
    {"precision": "bf16", "optimizer": "lamb"},
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("options", ON_GPU, ids=str)
def test_pretrain_on_a_gpu_never_waits_between_log_lines(
    options: dict[str, Any], tmp_path: Path, refuse: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, strategy = prepare(torch.device("cuda", 0), tmp_path, **options)

    def on_step(number: int) -> None:
        # The first step, which makes what is made once, and steps with a log line may wait; so may the last checkpoint.
        refuse(number < STEPS and not due(number + 1))

    loop(on_step)
    refuse(False)
    saved = io.BytesIO()  # a resumed run does not wait either, though its checkpoint comes by way of the GPU
    torch.save(strategy.tensors(), saved)
    saved.seek(0)
    strategy.load(torch.load(saved, map_location=strategy.context.device))
    loop(on_step)
    refuse(False)
    add = Window.add
    monkeypatch.setattr(Window, "add", lambda self, step, loss, *rest: (loss.item(), add(self, step, loss, *rest)))
    with pytest.raises(RuntimeError, match="synchroniz"):
        loop(on_step)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("method", LEARNED)
def test_learn_on_a_gpu_never_waits_between_log_lines(
    method: str, cuda_graph: bool, tmp_path: Path, refuse: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_step(number: int) -> None:
        refuse(number > 4 and number % LEARN.log_every != 0)  # the fourth step is the one that is recorded

    learned(
        method, torch.device("cuda", 0), tmp_path, on_step, monkeypatch, config=replace(LEARN, cuda_graph=cuda_graph)
    )
