"""Which images of a batch cannot be used: asked before decoding by their headers, and after a failure in full."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dist_train.data.images.headers import parses
from dist_train.data.images.orientation import transposed
from dist_train.data.loading.dali import decode_errors, stored_sizes
from dist_train.data.shards.source import BadSample
from dist_train.data.splits import View

Ints = npt.NDArray[np.int64]


def check_headers(view: View, ids: Ints, blobs: list[npt.NDArray[np.uint8]]) -> None:
    """Check the images whose header looks doubtful.

    Raises:
        BadSample: DALI's decoder on the CPU refuses an image; the first such image is named.
    """
    for sample, blob in zip(ids.tolist(), blobs, strict=True):
        if not parses(blob) and (reason := decode_errors([blob.tobytes()], threads=1)[0]):
            raise BadSample(view.subset, sample, f"cannot be decoded ({reason})")


def image_faults(view: View, ids: Ints, blobs: list[bytes]) -> list[str | None]:
    """Return for each image why it cannot be used, or None.

    An image is faulty where DALI's decoder on the CPU refuses it, or where it has another size than the index says, so
    that windows may lie outside of it.
    """
    reasons = [reason and f"cannot be decoded ({reason})" for reason in decode_errors(blobs, threads=1)]
    sound = [n for n, reason in enumerate(reasons) if reason is None]
    lying, stated = transposed(view.subset.orientations(ids)), view.subset.sizes(ids)
    stated[lying] = stated[lying, ::-1]
    for n, (height, width) in zip(sound, stored_sizes([blobs[n] for n in sound]).tolist(), strict=True):
        if (height, width) != tuple(stated[n]):
            reasons[n] = f"is {width} x {height} pixels, not those of the index: it was replaced under the index"
    return reasons
