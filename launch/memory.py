"""Out of memory: one line that names the stage, its batch and what would fit. Starting again would end the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.errors import UserError

_ALLOCATION = 2  # cudaErrorMemoryAllocation, of the CUDA runtime's cudaError_t
# Libraries have no code of theirs in torch's exceptions, which are RuntimeErrors with these words: cuDNN's until 8 and
# from 9 on; NCCL's with the number of CUDA's error, and without as older versions write it.
_OF_LIBRARIES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
)
# What torch's allocator of CPU memory raises, a RuntimeError as well (c10/core/impl/alloc_cpu.cpp).
_OF_MACHINE = "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def explained(config: Config, stage: str, context: Context, classes: int) -> Iterator[None]:
    """Turn an error that says that memory is used up, on the GPU or on the machine, into a line for the user.

    Args:
        classes: of the backbone, for which ``stages.memory`` counts what fits.

    Raises:
        UserError: memory was used up within.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        kind = exhausted(error)
        if kind is None:
            raise
        remedy = (
            smaller(config, stage, context.world, _fits(config, stage, context, classes)) if kind == "GPU" else _MACHINE
        )
        said = " ".join(str(error).split()).split(" Including non-PyTorch memory")[0][:240].rstrip(".")
        doing = context.progress.text
        raise UserError(f"{stage}: out of {kind} memory at {doing!r} ({said}); {remedy}") from error


def exhausted(error: Exception) -> str | None:
    """Say whose memory an error finds used up: "GPU" or "machine"; None where it is about something else."""
    if isinstance(error, MemoryError) or _OF_MACHINE in str(error):
        return "machine"
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "error_code", None) == _ALLOCATION:
        return "GPU"
    return "GPU" if any(word in str(error) for word in _OF_LIBRARIES) else None


_MACHINE = "ask for more memory for the job (SLURM: --mem), or give a smaller data.prefetch or data.threads"


def _fits(config: Config, stage: str, context: Context, classes: int) -> int | None:
    """Return how many images a pass of pretrain should fit this GPU, as ``run --dry-run`` counts them; None for other
    stages, and without a GPU."""
    if stage != "pretrain" or context.device.type != "cuda":
        return None
    from dist_train.stages import memory  # not above: it brings the networks, and with them torchvision

    size = torch.cuda.get_device_properties(context.device).total_memory
    return memory.largest_batch(config.pretrain, classes, config.data.train_size, context.world, size)


def smaller(config: Config, stage: str, world: int, fits: int | None = None) -> str:
    """Name the key whose value takes the memory of a stage on ``world`` ranks, and a smaller value.

    Args:
        fits: images a pass that should fit. Where the number is not known, or did not fit after all, half is offered.
    """
    if stage == "pretrain":
        return _pretrain(config, world, fits)
    if stage == "extract":
        batch = config.extract.batch
        smaller = f"; --extract.batch {batch // 2} takes about half, and continues" if batch > 1 else ""
        return f"extract.batch={batch} images are on a GPU at a time{smaller}"
    if stage == "learn":
        return "all base activations lie on each GPU: end what else runs on it, or take one with more memory"
    return "the rows before are kept: take a GPU with more free memory, or leave the method out of evaluate.methods"


def _pretrain(config: Config, world: int, fits: int | None) -> str:
    """Of pretrain: the next larger number of passes, and of ranks, that divides the batch and fits."""
    batch, passes = config.pretrain.global_batch, config.pretrain.accumulate
    each = batch // (world * passes)
    held = f"pretrain.global_batch={batch} is {each} images a pass on each of {world} rank(s)"
    if fits and fits < each:
        held += f", about {fits} fit"
    most = min(fits or each, each // 2)
    if (enough := _parts(batch, world, 2 * passes, most)) is None:
        return f"{held}; choose a smaller pretrain.global_batch"
    offers = [f"--pretrain.accumulate {enough} --redo begins it again with {batch // (world * enough)}"]
    if (times := _parts(batch, world * passes, 2, most)) is not None:
        offers.append(f"or on {times * world} ranks it continues, with {each // times}")
    return f"{held}; {', '.join(offers)}"


def _parts(batch: int, parts: int, fewest: int, most: int) -> int | None:
    """Return the smallest number from ``fewest`` on into which each of so many parts of a batch can be divided, with at
    most ``most`` images in each, and with 2 at least, which batch norm needs; None where there is none."""
    fewest = max(fewest, -(-batch // (parts * max(1, most))))
    return next((n for n in range(fewest, batch // (2 * parts) + 1) if batch % (parts * n) == 0), None)
