"""Few-Shot Image Recognition by Predicting Parameters from Activations, at full ImageNet scale.

``from dist_train import Classifier`` gives the classifier (docs/python.md); the command line ``dist-train`` trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dist_train.version import __version__

if TYPE_CHECKING:
    from dist_train.classifier.answer import Answer as Answer
    from dist_train.classifier.answer import Prediction as Prediction
    from dist_train.classifier.classifier import Classifier as Classifier
    from dist_train.errors import UserError as UserError

__all__ = ["Answer", "Classifier", "Prediction", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    # When it is asked for: the command line, and each rank, would pay for torch here.
    if name == "Classifier":
        from dist_train.classifier.classifier import Classifier

        return Classifier
    if name in ("Answer", "Prediction"):
        from dist_train.classifier import answer

        return getattr(answer, name)
    if name == "UserError":
        from dist_train.errors import UserError

        return UserError
    raise AttributeError(f"module 'dist_train' has no attribute {name!r}")
