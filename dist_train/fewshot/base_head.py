"""The classifier of a run's base classes: the backbone's own, or rows in closed form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dist_train.files import atomic_write
from dist_train.training import checkpoint


def load_head(run_dir: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and biases of a run's base classes, float32 [classes, dim] and [classes], once ``extract`` is done.

    They are those that ``extract`` has made in closed form, where it had to, and else the backbone's own.
    """
    made = run_dir / "extract" / "head.npz"
    if made.is_file():
        return read_head(made, device)
    tensors = checkpoint.load(run_dir / "pretrain" / "final", device).tensors["model"]
    return tensors["head.weight"], tensors["head.bias"]


def save_head(run_dir: Path, rows: torch.Tensor, bias: torch.Tensor) -> None:
    """Write rows and biases that ``load_head`` is to return."""
    write_head(run_dir / "extract" / "head.npz", rows, bias)


def read_head(path: Path, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and biases, float32 [classes, dim] and [classes], from a file."""
    with np.load(path) as head:
        return torch.from_numpy(head["rows"]).to(device), torch.from_numpy(head["bias"]).to(device)


def write_head(path: Path, rows: torch.Tensor, bias: torch.Tensor) -> None:
    """Write rows and biases that ``read_head`` is to return."""
    with atomic_write(path) as file:
        np.savez(file, rows=rows.cpu().numpy(), bias=bias.cpu().numpy())
