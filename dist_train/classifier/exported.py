"""A model in the ONNX file that ``export`` has written: answers in a fraction of the time that torch takes to load."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dist_train.classifier.answer import Answer, Class, answers_of, check_finite, checked_topk
from dist_train.classifier.doubt import Doubt
from dist_train.classifier.photo_files import decoded
from dist_train.classifier.reading import Pace, Source, answered
from dist_train.distributed.cpus import usable_cpus
from dist_train.errors import UserError, command
from dist_train.extras import needs_extra

if TYPE_CHECKING:
    from dist_train.classifier.photos import Photo

SUFFIX = ".onnx"


class Exported:
    """A model that answers as the one it was exported from does; onnxruntime computes, on the CPU.

    Attributes:
        classes: of the model.
        min_confidence: the probability from which on an answer is sure; None: by the model's own thresholds.
    """

    def __init__(self, path: Path) -> None:
        """Open a file that ``dist-train export MODEL --format onnx`` has written.

        Raises:
            UserError: there is no such file, it is damaged or of another origin, or onnxruntime is not installed.
        """
        with needs_extra("export", path):
            import onnxruntime
        if not path.is_file():
            raise UserError(f"{path}: no such file; {_export_again()} writes one")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = usable_cpus()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other threads decode meanwhile
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own types, which have no common one
            raise UserError(f"{path}: onnxruntime cannot open it ({' '.join(str(error).split())[:200]}); "
                            f"{_export_again()} writes it again") from None  # fmt: skip
        self.classes, self._doubt, self._orientation = self._about(path)
        self.min_confidence: float | None = None

    def stream(self, photos: Iterable[Source], topk: int = 5) -> Iterator[Answer]:
        """Yield the answer of each photo in order; few photos are in memory at a time."""
        topk = checked_topk(topk)

        def prepared(photo: Photo, name: str) -> npt.NDArray[np.uint8]:
            assert isinstance(photo, (str, Path, bytes))
            return decoded(photo, name, rule=self._orientation)

        def answer(pixels: list[npt.NDArray[np.uint8]]) -> list[Answer]:
            shares, nearness = self._session.run(["probabilities", "nearness"], {"images": np.stack(pixels)})
            check_finite(bool(np.isfinite(shares).all()))
            return answers_of(shares, nearness, self.classes, self._doubt, topk=topk,
                              min_confidence=self.min_confidence)  # fmt: skip

        # Photos of one batch must have the same size; those that wait are whole, and so they are few. As onnxruntime's
        # threads sleep while they wait, photos that are read meanwhile cost it little: this is faster than in turns.
        return answered(photos, prepared, answer, Pace(1, 2 * usable_cpus(), meanwhile=True))

    def _about(self, path: Path) -> tuple[list[Class], Doubt, Any]:
        """Return the classes, the doubt and the rule of orientation, from the file's metadata.

        Raises:
            UserError: it has none, or not those of its graph.
        """
        about = self._session.get_modelmeta().custom_metadata_map
        outputs = {output.name: output.shape for output in self._session.get_outputs()}
        try:
            classes = [Class(**entry) for entry in json.loads(about["classes"])]
            doubt = json.loads(about["doubt"])
            percentiles = tuple(map(float, doubt.pop("percentiles")))
            if outputs["probabilities"][1] == len(classes) and "nearness" in outputs:
                numbers = {name: float(number) for name, number in doubt.items()}
                rule = json.loads(about["preprocessing"])["orientation"]
                return classes, Doubt(**numbers, percentiles=percentiles), rule
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise UserError(f"{path}: is no export of this version of dist-train; {_export_again()} writes one")


def _export_again() -> str:
    return command("export", "MODEL", "--format", "onnx")
