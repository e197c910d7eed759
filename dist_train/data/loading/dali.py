"""Bytes and windows in, normalised tensors out: the only module that imports NVIDIA DALI.

One graph serves training and evaluation: decode (only the window, where there is one), turn upright, resize to
a given size, crop, flip, augment, normalise. Everything random is drawn before, in ``augment``, and comes
in as numbers, so DALI keeps no state of its own. With ``decoder="mixed"`` all of it is done on the GPU.
On the CPU it is where there is something to augment; else the graph ends after decoding, and
``pixels``, which is faster, does the rest.
"""

from __future__ import annotations

import importlib
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import DataConfig
from dist_train.data.images import orientation
from dist_train.data.images.headers import parses
from dist_train.data.loading.augment import BINS, OPERATIONS
from dist_train.data.loading.dali_errors import meaning, reason
from dist_train.data.loading.preprocessing import MEAN, STD, Request, finished
from dist_train.errors import UserError


def _dali() -> tuple[Any, Any, Any]:
    try:
        dali, fn, types = (importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    except ImportError as error:
        raise UserError(
            f"NVIDIA DALI cannot be imported ({error}); pip install -e '.[cuda13]', or '.[cuda12]'"
        ) from None
    return dali, fn, types


def build_pipeline(
    source: Callable[[], tuple[Any, ...]],
    max_batch: int,
    data: DataConfig,
    threads: int,
    device_id: int | None,
    crops: int = 1,
    turned: bool = False,
) -> Any:
    """The graph, on GPU ``device_id`` or, where None, on the CPU. ``source`` gives, a call a batch, what
    ``_inputs`` makes of a ``Request``; its StopIteration ends the stream. Output: float32
    [B, side, side, 3], or of several ``crops`` [B, crops, side, side, 3], normalised, where the graph is
    ``_whole``, else windows, uint8 [height, width, 3], as they are stored. ``turned``: images have an
    orientation."""
    dali, fn, types = _dali()
    whole, cut_after = _whole(data, device_id), _cuts_after(device_id)
    augmented = _augmenter(data) if data.operations else None

    @dali.pipeline_def(enable_conditionals=data.operations > 0 or turned)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        inputs = 3 + (2 + 3 * crops + 3 * turned if whole else 0) + (1 if data.operations else 0)
        blobs, anchor, shape, *rest = fn.external_source(source=source, num_outputs=inputs, batch=True, no_copy=True)
        images = decoded(blobs, start=anchor, shape=shape, axis_names="HW")
        if whole and turned:
            lying, mirror, flip, *rest = rest
            images = fn.flip(upright(images, lying), horizontal=mirror, vertical=flip)
        return finish(images, *rest) if whole else images

    def decoded(blobs: Any, **window: Any) -> Any:
        options = {
            "device": "cpu" if device_id is None else "mixed",
            "output_type": types.RGB,
            "adjust_orientation": False,  # the index has it, and the windows are those of the stored image
            "jpeg_fancy_upsampling": True,  # as libjpeg-turbo does, which is every decoder on a CPU
            # The GPU's JPEG engine, where it has one, takes what it can and not a share of each batch (DALI's 0.65):
            # which decoder an image gets must not depend on its place in a batch.
            "hw_decoder_load": 1.0,
        }
        if cut_after:
            return fn.slice(fn.decoders.image(blobs, **options), **window)
        return fn.decoders.image_slice(blobs, **window, **options)

    def upright(images: Any, lying: Any) -> Any:
        if lying:
            images = fn.transpose(images, perm=[1, 0, 2], output_layout="HWC")
        return images

    def finish(images: Any, size: Any, side: Any, *rest: Any) -> Any:
        crop_y, crop_x, flip = (rest[k * crops : (k + 1) * crops] for k in range(3))
        images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        if augmented is not None:  # in training: one crop
            images, flip = augmented(fn.flip(images, horizontal=flip[0]), size, rest[-1]), (0,)
        made = [crop(images, side, crop_y[k], crop_x[k], flip[k]) for k in range(crops)]
        return fn.stack(*made) if crops > 1 else made[0]

    def crop(images: Any, side: Any, y: Any, x: Any, flip: Any) -> Any:
        return fn.crop_mirror_normalize(
            images,
            crop_h=side,
            crop_w=side,
            crop_pos_y=y,
            crop_pos_x=x,
            mirror=flip,
            mean=[255 * value for value in MEAN],
            std=[255 * value for value in STD],
            dtype=types.FLOAT,
            output_layout="HWC",  # seen as NCHW below, this is channels_last without a copy
        )

    with warnings.catch_warnings(record=True):  # DALI's suites use old names of its own, and warn of them
        pipeline = graph(
            batch_size=max_batch,
            num_threads=threads,
            device_id=device_id,
            prefetch_queue_depth=data.prefetch,
            exec_dynamic=True,
        )
        pipeline.build()
    return pipeline


def _cuts_after(device_id: int | None) -> bool:
    """Whether an image is decoded whole and then cut to its window, or only its window is decoded.

    nvJPEG before 13.2 upsamples chroma wrongly at a window's edge, so nvImageCodec hands every such image to the CPU,
    with a warning. That is all of nvidia-nvjpeg-cu12 (12.4), which comes with nvidia-dali-cuda120.
    """
    if device_id is None:
        return False
    try:
        return tuple(int(part) for part in version("nvidia-nvjpeg").split(".")[:2]) < (13, 2)
    except (PackageNotFoundError, ValueError):
        return True


def _whole(data: DataConfig, device_id: int | None) -> bool:
    """Whether DALI does all the work, or ``pixels`` what comes after decoding."""
    return device_id is not None or data.operations > 0


def _inputs(request: Request, whole: bool, turned: bool) -> tuple[Any, ...]:
    """A request as the graph takes it."""
    fields: tuple[Any, ...] = (request.blobs, request.anchor, request.shape)
    if whole and turned:
        parts = (orientation.transposed, orientation.mirrored, orientation.flipped)
        fields += tuple(part(request.orientation).astype(np.int32) for part in parts)
    if whole:
        # DALI gives a crop as a share of the free border and rounds it back to a whole pixel.
        border = np.maximum(request.size - request.side, 1)
        images = len(border)
        share = (request.crop.reshape(images, -1, 2) / border[:, None]).astype(np.float32)
        y, x = np.ascontiguousarray(share.T)
        flip = np.ascontiguousarray(request.flip.reshape(images, -1).T)
        fields += (request.size.astype(np.float32), np.full(images, request.side, np.float32), *y, *x, *flip)
        if request.operations.size:
            fields += (request.operations,)
    return fields


def _augmenter(data: DataConfig) -> Callable[[Any, Any, Any], Any]:
    """For the graph: what is ``chosen`` (see ``augment.operations``), done to uint8 images [H, W, 3] of
    ``size`` by DALI's own operations. What they uncover gets DALI's grey, 128."""
    core, suite = importlib.import_module("nvidia.dali.auto_aug.core"), _suite(data)

    def augmented(images: Any, size: Any, chosen: Any) -> Any:
        for turn in range(data.operations):
            images = core.select(
                suite,
                chosen[turn, 0],
                images,
                magnitude_bin=core.signed_bin(chosen[turn, 1], chosen[turn, 2]),
                num_magnitude_bins=BINS,
                shape=size,
                fill_value=128,
            )
        return images

    return augmented


def _suite(data: DataConfig) -> list[Any]:
    """DALI's suite for ``data.augment``, in the order of ``OPERATIONS``. In RandAugment's a higher magnitude
    is always a stronger effect (its monotonic one; timm's ``inc1``).

    Translations go by the side, which may change in training: at most 100/224 of it in RandAugment and
    32/224 in TrivialAugment, DALI's numbers of pixels for its crops of 224.
    """
    if data.augment == "randaugment":
        module = importlib.import_module("nvidia.dali.auto_aug.rand_augment")
        suite = module.get_rand_augment_suite(use_shape=True, max_translate_rel=100 / 224)
    else:
        module = importlib.import_module("nvidia.dali.auto_aug.trivial_augment")
        suite = module.get_trivial_augment_wide_suite(use_shape=True, max_translate_rel=32 / 224)
    named = {operation.name: operation for operation in suite}
    # DALI rewrites all that a graph calls, so that an `if` works on batches. In the operations there is
    # none, and to rewrite them takes seconds.
    keep = importlib.import_module("nvidia.dali.pipeline").do_not_convert
    return [keep(named[name].__call__) for name in OPERATIONS]


def decode(
    requests: Iterator[Request],
    max_batch: int,
    data: DataConfig,
    threads: int,
    device_id: int | None = None,
    crops: int = 1,
    turned: bool = False,
    locked: bool = False,
) -> Generator[torch.Tensor, None, None]:
    """Images of each request: float32 [B * crops, 3, side, side], normalised, in channels_last memory.

    Args:
        requests: one a batch, each of at most ``max_batch`` images.
        threads: of the CPU.
        device_id: the GPU that decodes, or None for the CPU.
        crops: of each image of a request.
        turned: whether there may be images with an orientation; where there are none, nothing is spent on it.
        locked: see ``pixels.finished``, where it is that which makes the images.

    Raises:
        DecodeError: an image of a batch cannot be decoded, most likely.
        PipelineError, torch.OutOfMemoryError, MemoryError: the GPU failed, or memory is used up (``dali_errors``).
    """
    whole = _whole(data, device_id)
    # no_copy lends our arrays to DALI: hold them until their batch must be through.
    lent: deque[tuple[Any, ...]] = deque(maxlen=data.prefetch + 3)
    decoding: deque[Request] = deque()

    def feed() -> tuple[Any, ...]:
        request = next(requests)
        fields = _inputs(request, whole, turned)
        lent.append(fields)
        decoding.append(request)
        return fields

    def outputs() -> Iterator[tuple[Any, Request]]:
        while True:
            try:
                (images,) = pipeline.run()
            except StopIteration:
                return
            except (RuntimeError, MemoryError) as error:
                raise meaning(error) from error
            yield images, decoding.popleft()

    # The dynamic executor lends its buffers to the tensors: no copy, and no reuse while they live.
    try:
        pipeline = build_pipeline(feed, max_batch, data, threads, device_id, crops, turned)
    except (RuntimeError, MemoryError) as error:
        raise meaning(error) from error
    if whole:
        for images, _ in outputs():
            tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
            yield tensor.flatten(0, -4).permute(0, 3, 1, 2)
    else:
        yield from finished(((list(windows), request) for windows, request in outputs()), threads, locked)


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


def decode_whole(blob: bytes) -> npt.NDArray[np.uint8]:
    """Decode an image as training does, whole and as it is stored: uint8 [height, width, 3].

    Raises:
        RuntimeError: it cannot be decoded.
    """
    images: npt.NDArray[np.uint8] = np.array(_decoded([blob], 1).at(0))
    return images


def _decodes(blobs: list[bytes], threads: int) -> str | None:
    if any(len(blob) == 0 for blob in blobs):
        return "empty file"  # DALI's own words for it are "nvImageCodec failure: '#2'"
    try:
        _decoded(blobs, threads)
    except RuntimeError as error:
        return reason(error)
    return None


def _decoded(blobs: list[bytes], threads: int) -> Any:
    """DALI's list of images."""
    return _on_cpu("decoders.image", blobs, threads, output_type=_dali()[2].RGB, adjust_orientation=False)


def stored_sizes(blobs: list[bytes]) -> npt.NDArray[np.int64]:
    """Return height and width of each image as it is stored, by its header: int64 [B, 2]. All of them decode."""
    if not blobs:
        return np.zeros((0, 2), np.int64)
    shapes = _on_cpu("peek_image_shape", blobs, 1, adjust_orientation=False)
    sizes: npt.NDArray[np.int64] = np.stack([np.array(shapes.at(n)) for n in range(len(blobs))])[:, :2]
    return sizes


def _on_cpu(operator: str, blobs: list[bytes], threads: int, **options: Any) -> Any:
    """What one of DALI's operators makes of encoded images, in a pipeline of its own."""
    dali, fn, _ = _dali()
    arrays = [np.frombuffer(blob, np.uint8) for blob in blobs]

    @dali.pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = fn.external_source(source=lambda: arrays, batch=True)
        return attrgetter(operator)(fn)(encoded, **options)

    pipeline = graph(batch_size=len(blobs), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    pipeline.build()
    (made,) = pipeline.run()
    return made
