"""Files of weights: tensors by name, out of whatever wraps them, and into a network of which every tensor is there."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dist_train.errors import UserError
from dist_train.names import shown

State = dict[str, torch.Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")

# What checkpoints call the dictionary of weights, the preferred first: averages before what they are averages of.
_WRAPPINGS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model_state", "model",
    "teacher", "student", "module", "net", "network", "backbone", "encoder", "params",
)  # fmt: skip
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "network.", "net.")
"""Prefixes that DDP, ``torch.compile`` and frameworks for training put before all names."""

_LFS = b"version https://git-lfs"


def read_weights(path: Path) -> tuple[State, list[str]]:
    """Read a file of weights. Nothing in it is executed: pickles are read with ``weights_only=True``.

    Returns:
        Its tensors by name, without the dictionaries and prefixes that wrap all of them, and lines for the user: what
        was chosen where there are several networks.

    Raises:
        UserError: it is not there, is not a whole file of weights, or holds code.
    """
    check_file(path)
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            # A Namespace holds the options of timm's training checkpoints, and is data.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickles that are refused a moment later
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise a dozen kinds for files that are damaged or of another kind
        raise UserError(f"{path}: {_reason(path, error)}") from None
    content, notes = _unwrapped(content)
    state = _without_wrappers(content)
    if not state:
        raise UserError(f"{path}: has no tensors by name; give a file of a network's state_dict")
    return state, notes


def matched(state: Mapping[str, torch.Tensor], names: Collection[str]) -> State:
    """Return the tensors of a network that is a part of a larger one: the prefix under which most of the network's
    names stand is taken off, and tensors without it are left out.

    Args:
        state: the tensors of a file.
        names: of the network's tensors. Where fewer than half of them stand under any prefix, ``state`` is returned
            as it is.
    """
    wanted = set(names)
    prefixes = {key[: -len(name)] for name in names for key in state if key.endswith(name)}
    counts = {prefix: sum(prefix + name in state for name in wanted) for prefix in prefixes}
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    if counts.get(best, 0) < len(wanted) / 2:
        return dict(state)
    return {key.removeprefix(best): tensor for key, tensor in state.items() if key.startswith(best)}


def misfit(network: nn.Module, state: Mapping[str, torch.Tensor], optional: Collection[str] = ()) -> str:
    """Load the tensors into the network, and return in words what does not fit; "" where all fits.

    Args:
        network: what is loaded; where something does not fit, it is of no more use.
        state: tensors by name.
        optional: names that may be missing.
    """
    own = network.state_dict()
    misshapen = [name for name, tensor in state.items() if name in own and tensor.shape != own[name].shape]
    fitting = {name: tensor for name, tensor in state.items() if name not in misshapen}
    # load_state_dict and not a comparison of names: layers of these libraries rename what older versions wrote.
    result = network.load_state_dict(fitting, strict=False)
    missing = [name for name in result.missing_keys if name not in misshapen and name not in optional]
    shapes = [f"{name} {_shape(state[name])} for {_shape(own[name])}" for name in misshapen]
    parts = (("missing", missing), ("unexpected", result.unexpected_keys), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {what} ({_first(names)})" for what, names in parts if names)


def refuse_misfit(path: Path, source: str, words: str) -> UserError:
    """Return the error that a file does not fit a network, of the words of ``misfit``."""
    return UserError(
        f"{path}: not the weights of {source}: tensors {words}; give its own file, or name its own network"
    )


def check_file(path: Path | None) -> None:
    """Check that a file of weights is there and can be one by its name; None: no file is named.

    Raises:
        UserError: it is not.
    """
    if path is None:
        return
    if not path.exists():
        raise UserError(f"{path}: no such file of weights; give an existing one")
    if not path.is_file():
        raise UserError(
            f"{path}: is no file; give the file of the weights itself, or for the folder of a run the source run"
        )
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: not a file of weights by its name; give one of {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty; fetch it again")


def _reason(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that could not be read, in words, and the remedy."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return f"cannot be read ({unreadable.strerror}); make it readable"
    if start.startswith(_LFS):
        return "is a pointer of git-lfs and not the weights themselves; fetch them with: git lfs pull"
    if start.isascii() and b"\0" not in start:
        return "is text and not weights; fetch the file itself"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which holds code; save its state_dict() with torch.save and give that"
    code = re.search(r"GLOBAL (\S+)", str(error))  # of torch.load with weights_only=True
    if code:
        return f"holds code ({shown(code[1])}), which is not run; save its state_dict alone and give that"
    if "Unsupported operand" in str(error):
        return "is a pickle of Python, which may hold code and is not opened; save its state_dict with torch.save"
    if "central directory" in str(error) or "incomplete metadata" in str(error):
        return "is cut short; fetch it again"
    line = str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return f"cannot be read as weights ({shown(line)[:120]}); fetch it again"


def _unwrapped(content: Any) -> tuple[State, list[str]]:
    """Return the tensors inside dictionaries such as {"model": ..., "epoch": ...}, and notes of what was chosen."""
    notes: list[str] = []
    while isinstance(content, Mapping):
        wrappings = [key for key in _WRAPPINGS if isinstance(content.get(key), Mapping) and content[key]]
        if not wrappings:
            break
        if len(wrappings) > 1:
            notes.append(f"of {', '.join(wrappings)} in the file, {wrappings[0]} is taken")
        content = content[wrappings[0]]
    items = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, torch.Tensor)}, notes


def _without_wrappers(state: State) -> State:
    """Return the tensors without prefixes that all names have."""
    state.pop("n_averaged", None)  # the count of torch.optim.swa_utils.AveragedModel
    while state:
        prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(shown(name) for name in listed[:3]) + (", ..." if len(listed) > 3 else "")
