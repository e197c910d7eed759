"""Bytes and windows in, normalised tensors out: the only module that imports NVIDIA DALI.

One graph serves training and evaluation: decode (only the window, where there is one), resize to a
given size, crop, flip, normalise. Everything random is drawn before, in ``augment``, and comes in
as numbers, so DALI keeps no state of its own. With ``decoder="mixed"`` all of it is done on the GPU;
on the CPU the graph ends after decoding, and ``pixels`` does the rest.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from dist_train.data.headers import parses
from dist_train.data.pixels import MEAN, STD, Request, finished
from dist_train.errors import UserError


class DecodeError(Exception):
    """DALI refused a batch; the pipeline that raised it is spent."""


def _dali() -> tuple[Any, Any, Any]:
    try:
        dali, fn, types = (importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    except ImportError as error:
        raise UserError(
            f"NVIDIA DALI cannot be imported ({error}); install nvidia-dali-cuda130, or -cuda120 for CUDA 12"
        ) from None
    return dali, fn, types


def build_pipeline(
    source: Callable[[], tuple[Any, ...]],
    max_batch: int,
    side: int,
    threads: int,
    prefetch: int,
    device_id: int | None,
    mixed: bool,
) -> Any:
    """The graph. ``source`` gives, a call a batch, blobs, anchors and shapes of a ``Request`` and, when
    ``mixed``, its sizes, crops (y, then x) as shares of the free border (DALI's convention) and flips;
    its StopIteration ends the stream. Output: windows, uint8 [height, width, 3]; when ``mixed``
    float32 [B, side, side, 3], normalised."""
    dali, fn, types = _dali()

    @dali.pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        blobs, anchor, shape, *rest = fn.external_source(
            source=source, num_outputs=7 if mixed else 3, batch=True, no_copy=True
        )
        # adjust_orientation=False: the index holds stored sizes, and torchvision ignores EXIF too.
        images = fn.decoders.image_slice(
            blobs,
            start=anchor,
            shape=shape,
            axis_names="HW",
            device="mixed" if mixed else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
        )
        if not mixed:
            return images
        size, crop_y, crop_x, flip = rest
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        return fn.crop_mirror_normalize(
            images,
            crop=(side, side),
            crop_pos_y=crop_y,
            crop_pos_x=crop_x,
            mirror=flip,
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="HWC",  # seen as NCHW below, this is channels_last without a copy
        )

    pipeline = graph(
        batch_size=max_batch, num_threads=threads, device_id=device_id, prefetch_queue_depth=prefetch, exec_dynamic=True
    )
    pipeline.build()
    return pipeline


def decode(
    requests: Iterator[Request],
    max_batch: int,
    side: int,
    threads: int,
    prefetch: int = 2,
    device_id: int | None = None,
    mixed: bool = False,
) -> Generator[torch.Tensor, None, None]:
    """Images of each request: float32 [B, 3, side, side], normalised, in channels_last memory.

    Args:
        requests: one a batch, each of at most ``max_batch`` images.
        device_id: the GPU, or None for the CPU.
        mixed: decode on the GPU.

    Raises:
        DecodeError: an image of a batch cannot be decoded.
    """

    # no_copy lends our arrays to DALI: hold them until their batch must be through.
    lent: deque[tuple[Any, ...]] = deque(maxlen=prefetch + 3)
    decoding: deque[Request] = deque()

    def feed() -> tuple[Any, ...]:
        request = next(requests)
        fields: tuple[Any, ...] = (request.blobs, request.anchor, request.shape)
        if mixed:
            # DALI gives a crop as a share of the free border and rounds it back to a whole pixel.
            border = np.maximum(request.size - side, 1)
            y, x = np.ascontiguousarray((request.crop / border).astype(np.float32).T)
            fields += (request.size.astype(np.float32), y, x, request.flip)
        lent.append(fields)
        decoding.append(request)
        return fields

    def outputs() -> Iterator[tuple[Any, Request]]:
        while True:
            try:
                (images,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:
                raise DecodeError(_reason(error)) from error
            yield images, decoding.popleft()

    # The dynamic executor lends its buffers to the tensors: no copy, and no reuse while they live.
    pipeline = build_pipeline(feed, max_batch, side, threads, prefetch, device_id, mixed)
    if mixed:
        for images, _ in outputs():
            yield torch.utils.dlpack.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2)
    else:
        yield from finished(((list(windows), request) for windows, request in outputs()), side, threads)


def decode_errors(blobs: Sequence[bytes], threads: int) -> list[str | None]:
    """Whether the training decoder takes each image: None, or its reason (one line).

    DALI fails a batch as a whole, so a failing one is halved until the culprits are found. Images with
    a doubtful header are tried alone (``headers``).
    """
    reasons: list[str | None] = [None] * len(blobs)
    sound = [n for n, blob in enumerate(blobs) if parses(blob)]
    for n in set(range(len(blobs))) - set(sound):
        reasons[n] = _decodes([blobs[n]], threads)
    groups = [sound]
    while groups:
        group = groups.pop()
        reason = _decodes([blobs[n] for n in group], threads) if group else None
        if reason is not None and len(group) == 1:
            reasons[group[0]] = reason
        elif reason is not None:
            groups += [group[: len(group) // 2], group[len(group) // 2 :]]
    return reasons


def _decodes(blobs: list[bytes], threads: int) -> str | None:
    if any(len(blob) == 0 for blob in blobs):
        return "empty file"  # DALI's own words for it are "nvImageCodec failure: '#2'"
    dali, fn, types = _dali()
    arrays = [np.frombuffer(blob, np.uint8) for blob in blobs]

    @dali.pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = fn.external_source(source=lambda: arrays, batch=True)
        return fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)

    try:
        pipeline = graph(batch_size=len(blobs), num_threads=threads, device_id=None, prefetch_queue_depth=1)
        pipeline.build()
        pipeline.run()
    except RuntimeError as error:
        return _reason(error)
    return None


def _reason(error: RuntimeError) -> str:
    """What DALI says after "encountered:", in words where it only gives a code."""
    text = str(error).split("encountered:")[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Current pipeline object" not in line]
    told = " ".join(lines[:2]) or "unknown error"
    if "nvImageCodec failure" in told:
        return f"not an image format that DALI decodes ({told})"
    if "Failed to decode sample" in told:
        return "damaged or truncated image data"
    return told[:200]
