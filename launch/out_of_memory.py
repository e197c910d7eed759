"""Out of memory: one line with the stage, its batch and what would fit. Another start would end the same way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dist_train.config import Config
from dist_train.distributed.context import Context
from dist_train.errors import UserError, counted

_ALLOCATION = 2  # cudaErrorMemoryAllocation, of the CUDA runtime's cudaError_t
# torch has no exception for libraries that run out of memory: these words are in a RuntimeError. cuDNN has one word
# until version 8 and another from 9 on; NCCL writes the number of CUDA's error, or in older versions does not.
_LIBRARY_MESSAGES = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "Cuda failure 2 'out of memory'",
    "Cuda failure 'out of memory'",
)
# What torch's allocator of CPU memory raises, also in a RuntimeError (c10/core/impl/alloc_cpu.cpp).
_MACHINE_MESSAGE = "DefaultCPUAllocator: can't allocate memory"
_MACHINE_REMEDY = "ask for more memory for the job (SLURM: --mem), or give a smaller data.prefetch or data.threads"


@contextmanager
def explain_out_of_memory(config: Config, stage: str, context: Context, classes: int) -> Iterator[None]:
    """Turn an error that says that memory is used up, of the GPU or of the machine, into a line for the user.

    Args:
        classes: number of the backbone's classes, with which ``stages.memory`` counts what fits.

    Raises:
        UserError: memory was used up within the block.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        owner = whose_memory(error)
        if owner is None:
            raise
        remedy = _MACHINE_REMEDY
        if owner == "GPU":
            remedy = suggest_smaller(config, stage, context.world, _images_that_fit(config, stage, context, classes))
        reason = " ".join(str(error).split()).split(" Including non-PyTorch memory")[0][:240].rstrip(".")
        doing = context.progress.text
        raise UserError(f"{stage}: out of {owner} memory at {doing!r} ({reason}); {remedy}") from error


def whose_memory(error: Exception) -> str | None:
    """Return whose memory an error finds used up: "GPU" or "machine"; None where it is about something else."""
    if isinstance(error, MemoryError) or _MACHINE_MESSAGE in str(error):
        return "machine"
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "error_code", None) == _ALLOCATION:
        return "GPU"
    return "GPU" if any(message in str(error) for message in _LIBRARY_MESSAGES) else None


def _images_that_fit(config: Config, stage: str, context: Context, classes: int) -> int | None:
    """Return how many images a pass of pretrain should fit on this GPU, as ``run --dry-run`` counts them.

    None for other stages, and without a GPU.
    """
    if stage != "pretrain" or context.device.type != "cuda":
        return None
    from dist_train.stages import memory  # here, because it imports the networks, and with them torchvision

    size = torch.cuda.get_device_properties(context.device).total_memory
    return memory.largest_batch(config.pretrain, classes, config.data.train_size, context.world, size)


def suggest_smaller(config: Config, stage: str, world: int, fits: int | None = None) -> str:
    """Return which key's value takes the memory of a stage on ``world`` ranks, and a smaller value.

    Args:
        fits: images that should fit in a pass. Where it is unknown, or did not fit, half the batch is suggested.
    """
    if stage == "pretrain":
        return _suggest_for_pretrain(config, world, fits)
    if stage == "extract":
        batch = config.extract.batch
        smaller = f"; --extract.batch {batch // 2} takes about half, and continues" if batch > 1 else ""
        return f"extract.batch={batch}: so many images are on a GPU at a time{smaller}"
    if stage == "networks":
        now = f"networks.global_batch={config.networks.global_batch} in {counted(config.networks.accumulate, 'pass')}"
        return (
            f"{now} on {counted(world, 'rank')}; more --networks.accumulate --redo trains with fewer images at a time"
        )
    if stage == "learn":
        return "all base activations lie on each GPU: end what else runs on it, or take one with more memory"
    return "the rows before are kept: take a GPU with more free memory, or leave the method out of evaluate.methods"


def _suggest_for_pretrain(config: Config, world: int, fits: int | None) -> str:
    """Suggest the next larger number of passes, and of ranks, that divides the batch into parts that fit."""
    batch, passes = config.pretrain.global_batch, config.pretrain.accumulate
    images = batch // (world * passes)
    now = f"pretrain.global_batch={batch} is {counted(images, 'image')} a pass on each of {counted(world, 'rank')}"
    if fits and fits < images:
        now += f", about {fits} fit"
    most = min(fits or images, images // 2)
    more_passes = _divisor(batch, world, 2 * passes, most)
    if more_passes is None:
        return f"{now}; choose a smaller pretrain.global_batch"
    suggestions = [f"--pretrain.accumulate {more_passes} --redo begins it again with {batch // (world * more_passes)}"]
    more_ranks = _divisor(batch, world * passes, 2, most)
    if more_ranks is not None:
        suggestions.append(f"or on {more_ranks * world} ranks it continues, with {images // more_ranks}")
    return f"{now}; {', '.join(suggestions)}"


def _divisor(batch: int, parts: int, least: int, most_images: int) -> int | None:
    """Return the smallest number, ``least`` or larger, into which each of the equal parts of a batch can be divided.

    Each piece has at most ``most_images`` images, and at least 2, which batch norm needs. None where there is none.
    """
    least = max(least, -(-batch // (parts * max(1, most_images))))
    return next((n for n in range(least, batch // (2 * parts) + 1) if batch % (parts * n) == 0), None)
