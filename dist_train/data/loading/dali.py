"""Bytes and windows in, normalised tensors out: the only module that imports NVIDIA DALI.

One graph serves training and evaluation: decode the window only, turn it upright, resize it to a given size, crop,
flip, augment, normalise. Everything random is drawn before, in ``augment``, and comes in as numbers, so DALI keeps no
state of its own. With ``decoder="mixed"`` the GPU does all of this. On the CPU DALI does all of it where there is
something to augment; else the graph ends after decoding, and ``preprocessing``, which is faster, does the rest.
"""

from __future__ import annotations

import importlib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dist_train.config import DataConfig
from dist_train.config.backbone import Preprocessing
from dist_train.data.images import orientation
from dist_train.data.images.headers import parses
from dist_train.data.loading import dali_resize
from dist_train.data.loading.augment import BINS, OPERATIONS
from dist_train.data.loading.dali_errors import meaning, reason
from dist_train.data.loading.preprocessing import Request
from dist_train.errors import UserError

Augmenter = Callable[[Any, Any, Any], Any]


def _dali() -> tuple[Any, Any, Any]:
    try:
        dali, fn, types = (importlib.import_module(f"nvidia.dali{part}") for part in ("", ".fn", ".types"))
    except ImportError as error:
        raise UserError(
            f"NVIDIA DALI cannot be imported ({error}); pip install -e '.[cuda13]', or '.[cuda12]'"
        ) from None
    return dali, fn, types


@dataclass(frozen=True)
class GraphOptions:
    """Describe what a graph is built for.

    Attributes:
        data: the section of the configuration.
        preprocessing: what the network takes: interpolation and statistics; sizes come with each request.
        images: the most images that a batch has.
        threads: threads of the CPU.
        device_id: the GPU that decodes, or None for the CPU.
        crops: crops of each image.
        turned: whether there may be images with an orientation; where there are none, nothing is spent on it.
    """

    data: DataConfig
    preprocessing: Preprocessing
    images: int
    threads: int
    device_id: int | None = None
    crops: int = 1
    turned: bool = False

    @property
    def finishes(self) -> bool:
        """Whether DALI finishes the images, or only decodes them and ``preprocessing.Finisher`` does the rest."""
        return _finishes(self.data, self.device_id)

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, as ``_graph_inputs`` fills them."""
        names = ["encoded", "anchor", "shape"]
        if self.finishes:
            names += ["transposed", "mirrored", "flipped"] if self.turned else []
            names += [*dali_resize.input_names(self.preprocessing), "side"]
            names += [f"{name}_{k}" for k in range(self.crops) for name in ("top", "left", "flip")]
        return names + (["operations"] if self.data.operations else [])


def _finishes(data: DataConfig, device_id: int | None) -> bool:
    return device_id is not None or data.operations > 0


def build_pipeline(options: GraphOptions, depth: int) -> Any:
    """Build the pipeline: on its GPU, or on the CPU. Its output is a list of B images: finished, float32
    [side, side, 3], or of several crops [crops, side, side, 3]; else windows, uint8 [height, width, 3], as stored.

    Args:
        depth: batches in work at a time. The first run starts all of them.
    """
    dali, fn, types = _dali()
    augmented = _augmenter(options.data) if options.data.operations else None
    conditional = options.data.operations > 0 or options.turned
    # DALI rewrites the functions that a graph calls: what needs no graph is done before.
    decoding = _decoder_arguments(types, options)
    normalising = _normalising_arguments(types, options.preprocessing)
    cut_after = _decodes_whole_images(options.device_id)

    @dali.pipeline_def(enable_conditionals=conditional)  # type: ignore[untyped-decorator]
    def graph() -> Any:
        inputs = {name: fn.external_source(name=name, no_copy=True) for name in options.inputs}
        window = {"start": inputs["anchor"], "shape": inputs["shape"], "axis_names": "HW"}
        if cut_after:
            images = fn.slice(fn.decoders.image(inputs["encoded"], **decoding), **window)
        else:
            images = fn.decoders.image_slice(inputs["encoded"], **window, **decoding)
        if not options.finishes:
            return images
        if options.turned:
            images = _upright(fn, images, inputs["transposed"])
            images = fn.flip(images, horizontal=inputs["mirrored"], vertical=inputs["flipped"])
        images = dali_resize.resized(fn, types, images, inputs, options.preprocessing)
        mirror = [inputs[f"flip_{k}"] for k in range(options.crops)]
        if augmented is not None:  # in training: one crop, mirrored before it is augmented
            images = augmented(fn.flip(images, horizontal=mirror[0]), inputs["size"], inputs["operations"])
            mirror = [0]
        crops = [
            _crop(fn, images, inputs["side"], (inputs[f"top_{k}"], inputs[f"left_{k}"]), mirror[k], normalising)
            for k in range(options.crops)
        ]
        return fn.stack(*crops) if options.crops > 1 else crops[0]

    with warnings.catch_warnings(record=True):  # DALI's suites use old names of its own, and warn of them
        pipeline = graph(
            batch_size=options.images,
            num_threads=options.threads,
            device_id=options.device_id,
            prefetch_queue_depth=depth,
            exec_dynamic=True,
        )
        pipeline.build()
    return pipeline


def _decoder_arguments(types: Any, options: GraphOptions) -> dict[str, Any]:
    """Return the arguments of DALI's decoder."""
    return {
        "device": "cpu" if options.device_id is None else "mixed",
        "output_type": types.RGB,
        "adjust_orientation": False,  # the index has it, and the windows are those of the stored image
        "jpeg_fancy_upsampling": True,  # as libjpeg-turbo does, which is every decoder on a CPU
        # The GPU's JPEG engine, where it has one, takes what it can and not a share of each batch (DALI's 0.65):
        # which decoder an image gets must not depend on its place in a batch.
        "hw_decoder_load": 1.0,
    }


def _normalising_arguments(types: Any, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the arguments of DALI's normalisation."""
    return {
        "mean": [255 * value for value in preprocessing.mean],
        "std": [255 * value for value in preprocessing.std],
        "dtype": types.FLOAT,
        "output_layout": "HWC",  # seen as NCHW in the end, this is channels_last without a copy
    }


def _upright(fn: Any, images: Any, lying: Any) -> Any:
    """Transpose the images that lie on their side."""
    if lying:
        images = fn.transpose(images, perm=[1, 0, 2], output_layout="HWC")
    return images


def _crop(fn: Any, images: Any, side: Any, corner: tuple[Any, Any], mirror: Any, normalising: dict[str, Any]) -> Any:
    """Crop resized images, and normalise the crops."""
    place = {"crop_h": side, "crop_w": side, "crop_pos_y": corner[0], "crop_pos_x": corner[1]}
    return fn.crop_mirror_normalize(images, mirror=mirror, **place, **normalising)


def _decodes_whole_images(device_id: int | None) -> bool:
    """Tell whether an image is decoded whole and then cut to its window; else only its window is decoded.

    nvJPEG before 13.2 upsamples chroma wrongly at a window's edge, so nvImageCodec hands every such image to the CPU,
    with a warning. All releases of nvidia-nvjpeg-cu12 (12.4), which comes with nvidia-dali-cuda120, are older.
    """
    if device_id is None:
        return False
    try:
        return tuple(int(part) for part in version("nvidia-nvjpeg").split(".")[:2]) < (13, 2)
    except (PackageNotFoundError, ValueError):
        return True


def _graph_inputs(request: Request, options: GraphOptions) -> dict[str, Any]:
    """Return a request as the graph takes it: an array, or a list of arrays, for each of its inputs."""
    fields: dict[str, Any] = {"encoded": request.blobs, "anchor": request.anchor, "shape": request.shape}
    if not options.finishes:
        return fields
    if options.turned:
        parts = (orientation.transposed, orientation.mirrored, orientation.flipped)
        fields |= {part.__name__: part(request.orientation).astype(np.int32) for part in parts}
    images = len(request.size)
    fields |= dali_resize.graph_inputs(request) | {"side": np.full(images, request.side, np.float32)}
    # DALI gives a crop as a share of the free border and rounds it back to a whole pixel.
    border = np.maximum(request.size - request.side, 1)
    share = (request.crop.reshape(images, -1, 2) / border[:, None]).astype(np.float32)
    top, left = np.ascontiguousarray(share.T)
    flip = np.ascontiguousarray(request.flip.reshape(images, -1).T)
    for k in range(options.crops):
        fields |= {f"top_{k}": top[k], f"left_{k}": left[k], f"flip_{k}": flip[k]}
    if request.operations.size:
        fields["operations"] = request.operations
    return fields


def _augmenter(data: DataConfig) -> Augmenter:
    """Return a function for the graph that applies ``chosen`` operations (see ``augment.operations``) to uint8 images
    [H, W, 3] of ``size``, by DALI's own operations. Uncovered pixels get DALI's grey, 128."""
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
    """Return DALI's suite for ``data.augment``, in the order of ``OPERATIONS``.

    For RandAugment it is the monotonic suite, in which a higher magnitude is always a stronger effect (timm's
    ``inc1``). Translations are relative to the side, which may change in training: at most 100/224 of it in RandAugment
    and 32/224 in TrivialAugment, DALI's numbers of pixels for its crops of 224.
    """
    if data.augment == "randaugment":
        module = importlib.import_module("nvidia.dali.auto_aug.rand_augment")
        suite = module.get_rand_augment_suite(use_shape=True, max_translate_rel=100 / 224)
    else:
        module = importlib.import_module("nvidia.dali.auto_aug.trivial_augment")
        suite = module.get_trivial_augment_wide_suite(use_shape=True, max_translate_rel=32 / 224)
    named = {operation.name: operation for operation in suite}
    # DALI rewrites every function that a graph calls, so that an `if` works on batches. The operations have no `if`,
    # and to rewrite them takes seconds.
    keep = importlib.import_module("nvidia.dali.pipeline").do_not_convert
    return [keep(named[name].__call__) for name in OPERATIONS]


class Decoder:
    """Decode batch by batch: ``feed`` takes a request, ``take`` returns the oldest batch.

    It must be fed ``depth`` batches before the first is taken, and have at most as many in work.
    """

    def __init__(self, options: GraphOptions, depth: int) -> None:
        """Build the pipeline.

        Raises:
            PipelineError, torch.OutOfMemoryError, MemoryError: see ``take``.
        """
        self._options, self._depth, self._fed = options, depth, 0
        with _errors_of_dali():
            self._pipeline = build_pipeline(options, depth)
        # no_copy lends our arrays to DALI: hold them until their batch must be through.
        self._lent: deque[dict[str, Any]] = deque(maxlen=options.data.prefetch + 3)

    def feed(self, request: Request) -> None:
        """Start to decode a batch.

        Raises:
            DecodeError, PipelineError, torch.OutOfMemoryError, MemoryError: see ``take``.
        """
        fields = _graph_inputs(request, self._options)
        self._lent.append(fields)
        with _errors_of_dali():
            for name, values in fields.items():
                self._pipeline.feed_input(name, values)
            self._fed += 1
            if self._fed >= self._depth:  # the first call starts all batches of the queue
                self._pipeline.schedule_run()

    def take(self) -> Any:
        """Return the oldest batch, once it is decoded.

        Returns:
            Finished images: a float32 tensor [B * crops, 3, side, side], normalised, in channels_last memory. Where
            DALI does not finish them: a list of B windows, uint8 [height, width, 3], as dlpack.

        Raises:
            DecodeError: an image of the batch cannot be decoded, most likely. The pipeline is spent.
            PipelineError, torch.OutOfMemoryError, MemoryError: the GPU failed, or memory is used up (``dali_errors``).
        """
        with _errors_of_dali():
            (images,) = self._pipeline.outputs()
        if not self._options.finishes:
            return list(images)
        # The dynamic executor lends its buffers to the tensors: no copy, and no reuse while they live.
        tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
        return tensor.flatten(0, -4).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Let go of the pipeline, and then of the memory that it reads."""
        del self._pipeline
        self._lent.clear()


@contextmanager
def _errors_of_dali() -> Iterator[None]:
    """Raise errors of DALI as what they mean (see ``dali_errors.meaning``)."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise meaning(error) from error


def decode_errors(blobs: Sequence[bytes], threads: int) -> list[str | None]:
    """Return for each image None where the training decoder takes it, else the decoder's reason in one line.

    DALI fails a batch as a whole, so a failing batch is halved until the culprits are found. Images with
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
        RuntimeError: the image cannot be decoded.
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
    """Return DALI's list of the decoded images."""
    return _on_cpu("decoders.image", blobs, threads, output_type=_dali()[2].RGB, adjust_orientation=False)


def stored_sizes(blobs: list[bytes]) -> npt.NDArray[np.int64]:
    """Return height and width of each image as it is stored, by its header: int64 [B, 2]. All images must decode."""
    if not blobs:
        return np.zeros((0, 2), np.int64)
    shapes = _on_cpu("peek_image_shape", blobs, 1, adjust_orientation=False)
    sizes: npt.NDArray[np.int64] = np.stack([np.array(shapes.at(n)) for n in range(len(blobs))])[:, :2]
    return sizes


def _on_cpu(operator: str, blobs: list[bytes], threads: int, **options: Any) -> Any:
    """Apply one of DALI's operators to encoded images, in a pipeline of its own."""
    dali, fn, _ = _dali()
    arrays = [np.frombuffer(blob, np.uint8) for blob in blobs]

    @dali.pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        encoded = fn.external_source(source=lambda: arrays, batch=True)
        return attrgetter(operator)(fn)(encoded, **options)

    pipeline = graph(batch_size=len(blobs), num_threads=threads, device_id=None, prefetch_queue_depth=1)
    pipeline.build()
    (output,) = pipeline.run()
    return output
