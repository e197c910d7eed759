"""What a training step takes of one rank's memory, and which batch fits: counted before anything starts.

The step's forward pass is run on fake tensors, which have shapes and types and no numbers, and what autograd keeps of
it is added up. PyTorch's own tracker, which sees every tensor of whole steps, comes to the same within 5%
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
from dist_train.models.backbone import Backbone
from dist_train.training.precision import TYPES
from dist_train.training.strategies.deepspeed import deepspeed_options

_GIB = 2**30
_WORKING = {"sgd": 0, "lars": 2, "lamb": 3}
"""Temporary tensors of the largest parameter's size in an optimiser's step: PyTorch's fused SGD has none; timm's were
counted by the tracker (timm 1.0)."""

CARDS = (16, 24, 40, 80, 141)
"""GB of memory that GPUs are sold with: V100 and T4, A10 and L4, A100, A100 and H100, H200."""

LEAST = 0.97e9
"""Bytes of such a GB that torch can have at least: of a T4's 16 GB 14.56 GiB
(github.com/AlphaGPU/leetgpu-challenges/issues/52); those with HBM have more than 10^9."""

CONTEXT = 0.5 * _GIB
"""CUDA's context and the kernels that are loaded: "about 300 MB" with CUDA 11.7's lazy loading
(github.com/pytorch/pytorch/issues/107667), and more with each library."""
WORKSPACE = 1.0 * _GIB
"""What cuDNN's and cuBLAS's kernels work in. PyTorch sets cuDNN no limit (github.com/pytorch/pytorch/issues/49207);
a ResNet's algorithms gain nothing above 128 to 256 MiB (measured in github.com/sonots/cumo/pull/502), a trial of all of
them may take more. cuBLAS takes 32 MiB (PyTorch's notes on CUDA semantics)."""
NCCL = 1.0 * _GIB
"""The buffers of one communicator, where there are several ranks: with the context, 1.6 GB after the first all-reduce
(github.com/NVIDIA/nccl/issues/864). They grow with the number of channels, and not beyond two nodes (issues/986)."""
DECODER = 0.5 * _GIB
"""DALI's and nvJPEG's working memory: a buffer for each thread, of 16 MiB (``device_memory_padding``) up to the largest
image."""
DECODED = 4
"""Batches of float32 images that DALI holds: ``data.prefetch`` of 2 by default, the one that is made, and its decoded
and resized bytes. They are DALI's own, beside the batch that is trained on."""
FRAGMENTED = 1.1
"""What PyTorch's allocator reserves for each byte that is allocated: 16.7 GB for 15.0
(github.com/pytorch/pytorch/issues/40989)."""


@dataclass(frozen=True)
class Cost:
    """Of one image through the model.

    Attributes:
        flops: of the forward pass (multiply and add count as two).
        saved: bytes that are kept until the backward pass, the image itself among them.
        copies: bytes that are kept whatever the number of images: in mixed precision, the weights in two bytes.
        parameters, buffers: numbers of the model.
        largest: numbers of its largest parameter.
        layers: of each layer with parameters, in order, the numbers of the parameters and the ``saved`` bytes so far.
    """

    flops: float
    saved: float
    copies: float
    parameters: int
    buffers: int
    largest: int
    layers: tuple[tuple[int, float], ...]


class _Kept:
    """Storages that are alive at the end of a forward pass, beside the model's own."""

    def __init__(self) -> None:
        self.own: set[int] = set()
        self._storages: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.own:
            self._storages[storage._cdata] = storage  # held, or another may come to lie at its address
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


def cost(config: PretrainConfig, classes: int, side: int) -> Cost:
    """Return what one image of ``side`` pixels costs. Nothing is computed, and no memory is taken."""
    images = 2  # batch norm wants more than one where it is left with one pixel
    kind = TYPES[config.precision]
    mixed_precision = kind != torch.float32
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    keep = _Kept()
    so_far = [(0, 0)]  # numbers of parameters, bytes that are kept, after each layer

    def ended(layer: nn.Module, *_: object) -> None:
        so_far.append((so_far[-1][0] + sum(w.numel() for w in layer.parameters(recurse=False)), keep.bytes))

    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        model = Backbone(config.model, classes, config.small_stem)
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
    copies = (
        2.0 * sum(w.numel() for w in weights if w.ndim > 1) if mixed_precision else 0.0
    )  # batch norm's are not cast
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


def memory(config: PretrainConfig, one: Cost, images: int, world: int) -> dict[str, float]:
    """Return the bytes of one rank at the fullest moment of a step, by what takes them.

    The optimiser's temporary tensors, which there are when the activations are gone, are counted among these.

    ZeRO divides the optimiser's state (1), the gradients too (2), the weights too (3) among the ranks. Each rank keeps
    the optimiser's copy of its part of the weights besides, and in stage 3 a whole copy for evaluation and checkpoints.

    Args:
        images: in flight at once, on this rank.
    """
    stage = 0 if config.strategy == "ddp" else int(config.strategy.removeprefix("zero"))
    whole = 4.0 * one.parameters
    part = whole / world if stage >= 1 and not config.offload else 0.0
    model = whole + 4.0 * one.buffers
    moments = {"sgd": 1, "lars": 1, "lamb": 2}[config.optimizer]
    working = 4.0 * one.largest * _WORKING[config.optimizer]
    if world == 1 and config.strategy == "ddp" and config.accumulate == 1:
        gradients, activations = _fullest(one, images, working)
    else:  # room for all gradients is kept from step to step, or from one pass to the next
        gradients = whole / (world if stage >= 2 else 1)
        activations = max(one.copies + one.saved * images, working)
    return {
        "weights": model * (2 if config.ema else 1) + part + (whole / world if stage == 3 else 0.0),
        "gradients": gradients,
        "optimiser": 0.0 if config.offload else moments * whole / (world if stage >= 1 else 1),
        "activations": activations,
        "buckets": _buckets(config, world, one.parameters) if stage else 0.0,
    }


def _fullest(one: Cost, images: int, working: float) -> tuple[float, float]:
    """Return the bytes of gradients and of activations at the fullest moment of a lone process, which frees its
    gradients after each step: they come as activations go, from the last layer to the first. With many images it is
    fullest before the first of them is there."""
    whole = 4.0 * one.parameters
    backward = ((whole - 4.0 * n, one.copies * n / one.parameters + saved * images) for n, saved in one.layers)
    return max((0.0, one.copies + one.saved * images), *backward, (whole, working), key=sum)


def _buckets(config: PretrainConfig, world: int, parameters: int) -> float:
    """Return the bytes of the buffers in which ZeRO 1 to 3 gathers gradients: one, or two where exchanges overlap in
    stages 1 and 2."""
    options = deepspeed_options(config, world, parameters)["zero_optimization"]
    if not options.get("contiguous_gradients", True):
        return 0.0
    count = 2 if options.get("overlap_comm") and config.strategy != "zero3" else 1
    return 4.0 * count * float(options["reduce_bucket_size"])


def overhead(side: int, images: int, world: int) -> dict[str, float]:
    """Return the bytes that a rank's GPU holds beside PyTorch's tensors, by what takes them."""
    return {
        "CUDA context": CONTEXT,
        "workspace": WORKSPACE,
        "NCCL": NCCL if world > 1 else 0.0,
        "DALI": DECODER + DECODED * 4.0 * 3 * side**2 * images,
    }


def fitting(config: PretrainConfig, classes: int, side: int, world: int, bytes: float) -> int:
    """Return the largest batch of one forward pass with which a rank fits a GPU of so many bytes, with ``overhead``
    and the allocator's share on top; 0 where not even one image does.

    Args:
        side: of the images, in pixels.
        world: number of ranks.
    """
    return _fitting(config, cost(config, classes, side), side, world, bytes)


def _fitting(config: PretrainConfig, one: Cost, side: int, world: int, bytes: float) -> int:
    def taken(images: int) -> float:
        tensors = sum(memory(config, one, images, world).values())
        return FRAGMENTED * tensors + sum(overhead(side, images, world).values())

    few, many = 0, 1
    while taken(many) <= bytes:
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if taken(middle) <= bytes else (few, middle)
    return few


def cards(config: PretrainConfig, one: Cost, side: int, world: int) -> str:
    """Return the largest batch of a rank on each of ``CARDS``, in words."""
    return ", ".join(f"{_fitting(config, one, side, world, size * LEAST)} on {size} GB" for size in CARDS)
