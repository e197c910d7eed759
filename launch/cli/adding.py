"""Photos of a class that is added: computed, or named where they cannot be decoded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_train.data.account import Account
from dist_train.errors import UserError

if TYPE_CHECKING:
    import torch

    from dist_train.classifier.classifier import Classifier


def photos_of(model: Classifier, paths: Sequence[Path], account: Account) -> torch.Tensor:
    """Return the activations [k, dim] of the photos that can be decoded; the account has the others by name."""
    import torch

    from dist_train.classifier.classifier import batches

    rows = [model.network.base_rows[:0]]
    for part in batches(paths):
        pixels = []
        for path in part:
            try:
                pixels.append(model.pixels(path))
            except UserError as error:
                account.taken -= 1
                account.leave_out(str(path), str(error).removeprefix(f"{path}: "))
        rows.append(model.activations(pixels))
    return torch.cat(rows)


def last_left_out(account: Account) -> str:
    """Say which photo was left out last, and why, and how many there are."""
    name, reason = account.left_out[-1]
    return f"{name}: {reason}" + (f"; {len(account.left_out)} photos are left out" * (len(account.left_out) > 1))
