"""Count the memory that a training step takes on a rank, and the batch that fits, before anything starts.

The step's forward pass runs on fake tensors, which have shapes and types but no numbers, and the tensors that autograd
keeps are added up. PyTorch's own tracker, which sees every tensor of whole steps, comes to the same within 5%
(tests/training/test_fake_cuda.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from dist_train.config import PretrainConfig
from dist_train.models.backbones import build
from dist_train.stages.backbone import architecture_of
from dist_train.training.precision import TYPES
from dist_train.training.strategies.deepspeed import deepspeed_options

_GIB = 2**30
_WORKING = {"sgd": 0, "lars": 2, "lamb": 3}
"""Temporary tensors of the largest parameter's size in an optimiser's step: PyTorch's fused SGD has none; those of
timm's were counted by the tracker (timm 1.0)."""

CARDS = (16, 24, 40, 80, 141)
"""Memory in GB that GPUs are sold with: V100 and T4, A10 and L4, A100, A100 and H100, H200."""

USABLE_BYTES = 0.97e9
"""Bytes of such a GB that torch can use at least: 14.56 GiB of a T4's 16 GB
(github.com/AlphaGPU/leetgpu-challenges/issues/52). GPUs with HBM have more than 10^9."""

CONTEXT = 0.5 * _GIB
"""CUDA's context and the kernels that are loaded: "about 300 MB" with CUDA 11.7's lazy loading
(github.com/pytorch/pytorch/issues/107667), and more with each library."""
WORKSPACE = 1.0 * _GIB
"""Working memory of cuDNN's and cuBLAS's kernels. PyTorch sets cuDNN no limit
(github.com/pytorch/pytorch/issues/49207). A ResNet's algorithms gain nothing above 128 to 256 MiB (measured in
github.com/sonots/cumo/pull/502), but a trial of all algorithms may take more. cuBLAS takes 32 MiB (PyTorch's notes on
CUDA semantics)."""
NCCL = 1.0 * _GIB
"""Buffers of a communicator, where there are many ranks: with the context, 1.6 GB after the first all-reduce
(github.com/NVIDIA/nccl/issues/864). They grow with the number of channels, but not beyond two nodes (issues/986)."""
DECODER = 0.5 * _GIB
"""Working memory of DALI and nvJPEG: a buffer for each thread, between 16 MiB (``device_memory_padding``) and the
largest image."""
DECODED = 4
"""Batches of float32 images that DALI holds beside the batch that is trained on: ``data.prefetch`` (2 by default), the
batch in the making, and its decoded and resized bytes."""
FRAGMENTED = 1.1
"""Bytes that PyTorch's allocator reserves for each allocated byte: 16.7 GB for 15.0
(github.com/pytorch/pytorch/issues/40989)."""


@dataclass(frozen=True)
class Cost:
    """Hold what an image costs on its way through the model.

    Attributes:
        flops: operations of the forward pass; a multiplication with an addition counts as two.
        saved: bytes that are kept until the backward pass, those of the image among them.
        copies: bytes that are kept whatever the number of images: in mixed precision, the weights in two bytes each.
        parameters, buffers: how many numbers the model has in them.
        largest: how many numbers its largest parameter has.
        layers: the numbers in parameters and the ``saved`` bytes up to the end of each layer with parameters, in order.
    """

    flops: float
    saved: float
    copies: float
    parameters: int
    buffers: int
    largest: int
    layers: tuple[tuple[int, float], ...]


class _Kept:
    """Collect the storages that are alive at the end of a forward pass, beside the model's own."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self._storages[storage._cdata] = storage  # held: another storage could get its address
        return tensor

    @property
    def bytes(self) -> int:
        """Bytes of all storages."""
        return sum(storage.nbytes() for storage in self._storages.values())


def count_cost(config: PretrainConfig, classes: int, side: int) -> Cost:
    """Return what an image of ``side`` pixels costs, as if no layer were frozen. Nothing is computed, and no memory is
    taken."""
    images = 2  # batch norm needs more than one image where each is left with a single pixel
    kind = TYPES[config.precision]
    mixed_precision = kind != torch.float32
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    keep = _Kept()
    architecture = architecture_of(config, classes)
    so_far = [(0, 0)]  # numbers of parameters, bytes that are kept, after each layer

    def ended(layer: nn.Module, *_: object) -> None:
        so_far.append((so_far[-1][0] + sum(w.numel() for w in layer.parameters(recurse=False)), keep.bytes))

    with torch.device("meta"):  # not among fake tensors, of which timm would ask for numbers
        model = build(architecture)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        model.to_empty(device="cpu")
        for layer in model.modules():
            if list(layer.parameters(recurse=False)):
                layer.register_forward_hook(ended)
        weights = list(model.parameters())
        keep.own |= {tensor.untyped_storage()._cdata for tensor in (*weights, *model.buffers())}
        batch = keep(torch.empty(images, 3, side, side).contiguous(memory_format=torch.channels_last))
        mixed = keep(batch.clone()) if config.mixup or config.cutmix else batch
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # The CPU's autocast casts the same layers of a ResNet as CUDA's, which is off where there is no GPU.
            with torch.autocast("cpu", kind, enabled=mixed_precision):
                logits = keep(model(keep(mixed.contiguous(memory_format=layout))))
            F.cross_entropy(logits.float(), torch.zeros(images, dtype=torch.int64))
    # Batch norm's weights are not cast.
    copies = 2.0 * sum(w.numel() for w in weights if w.ndim > 1) if mixed_precision else 0.0
    parameters = sum(w.numel() for w in weights)
    layers = tuple((count, (kept - copies * count / parameters) / images) for count, kept in so_far)
    return Cost(
        flops=counter.get_total_flops() / images,
        saved=(keep.bytes - copies) / images,
        copies=copies,
        parameters=parameters,
        buffers=sum(b.numel() for b in model.buffers()),
        largest=max(w.numel() for w in weights),
        layers=layers,
    )


def memory_by_use(config: PretrainConfig, cost: Cost, images: int, world: int) -> dict[str, float]:
    """Return the bytes of a rank at the fullest moment of a step, by their use.

    The optimiser's temporary tensors exist when the activations are gone, and count as activations.

    ZeRO divides the optimiser's state (stage 1), the gradients too (2), the weights too (3) among the ranks. Each rank
    also keeps the optimiser's copy of its part of the weights, and in stage 3 a whole copy for evaluation and
    checkpoints.

    Args:
        images: images of a forward pass on this rank.
        world: number of ranks.
    """
    stage = 0 if config.strategy == "ddp" else int(config.strategy.removeprefix("zero"))
    whole = 4.0 * cost.parameters
    own_part = whole / world if stage >= 1 and not config.offload else 0.0
    model = whole + 4.0 * cost.buffers
    moments = {"sgd": 1, "lars": 1, "lamb": 2}[config.optimizer]
    working = 4.0 * cost.largest * _WORKING[config.optimizer]
    if world == 1 and config.strategy == "ddp" and config.accumulate == 1:
        gradients, activations = _fullest(cost, images, working)
    else:  # memory for all gradients is kept from step to step, or from pass to pass
        gradients = whole / (world if stage >= 2 else 1)
        activations = max(cost.copies + cost.saved * images, working)
    return {
        "weights": model * (2 if config.ema else 1) + own_part + (whole / world if stage == 3 else 0.0),
        "gradients": gradients,
        "optimiser": 0.0 if config.offload else moments * whole / (world if stage >= 1 else 1),
        "activations": activations,
        "buckets": _buckets(config, world, cost.parameters) if stage else 0.0,
    }


def _fullest(cost: Cost, images: int, working: float) -> tuple[float, float]:
    """Return the bytes of gradients and of activations at the fullest moment of a lone process.

    It frees its gradients after each step, so they come as activations go, from the last layer to the first. With many
    images the fullest moment is before the first gradient.
    """
    whole = 4.0 * cost.parameters
    backward = ((whole - 4.0 * n, cost.copies * n / cost.parameters + saved * images) for n, saved in cost.layers)
    return max((0.0, cost.copies + cost.saved * images), *backward, (whole, working), key=sum)


def _buckets(config: PretrainConfig, world: int, parameters: int) -> float:
    """Return the bytes of the buffers in which ZeRO 1 to 3 gathers gradients: a single buffer, or two where exchanges
    overlap in stages 1 and 2."""
    options = deepspeed_options(config, world, parameters)["zero_optimization"]
    if not options.get("contiguous_gradients", True):
        return 0.0
    count = 2 if options.get("overlap_comm") and config.strategy != "zero3" else 1
    return 4.0 * count * float(options["reduce_bucket_size"])


def overhead(side: int, images: int, world: int) -> dict[str, float]:
    """Return the bytes that a rank's GPU holds beside PyTorch's tensors, by their use."""
    return {
        "CUDA context": CONTEXT,
        "workspace": WORKSPACE,
        "NCCL": NCCL if world > 1 else 0.0,
        "DALI": DECODER + DECODED * 4.0 * 3 * side**2 * images,
    }


def largest_batch(config: PretrainConfig, classes: int, side: int, world: int, bytes: float) -> int:
    """Return the largest batch of a forward pass with which a rank fits a GPU of ``bytes``, ``overhead`` and the
    allocator's share included; 0 where not even one image fits.

    Args:
        side: side of the images in pixels.
        world: number of ranks.
    """
    return _largest_batch(config, count_cost(config, classes, side), side, world, bytes)


def _largest_batch(config: PretrainConfig, cost: Cost, side: int, world: int, bytes: float) -> int:
    def taken(images: int) -> float:
        tensors = sum(memory_by_use(config, cost, images, world).values())
        return FRAGMENTED * tensors + sum(overhead(side, images, world).values())

    fits, too_many = 0, 1
    while taken(too_many) <= bytes:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if taken(middle) <= bytes else (fits, middle)
    return fits


def batches_by_card(config: PretrainConfig, cost: Cost, side: int, world: int) -> str:
    """Return the largest batch of a rank on each of ``CARDS``, in words."""
    return ", ".join(f"{_largest_batch(config, cost, side, world, size * USABLE_BYTES)} on {size} GB" for size in CARDS)
