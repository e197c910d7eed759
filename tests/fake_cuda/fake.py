"""A CUDA device without a GPU: PyTorch's fake tensors know shapes, types and devices, and hold no numbers.

A Python process must be started in ``environment(folder)``, which preloads ``stub.c``. In that process,
``switch_on()`` and then ``with FakeCuda():`` make ``torch.device("cuda", 0)`` usable; tensors of the CPU are real. As
on a GPU, an operator refuses a tensor of the CPU among those of the device. ``with step():`` also refuses operations
that make the host wait for the device, as ``torch.cuda.set_sync_debug_mode`` does on a GPU.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

STUB = Path(__file__).parent / "stub.c"
COMPILER = shutil.which("cc")


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a process with the stub, which is compiled into ``folder``."""
    assert COMPILER is not None
    library = folder / "libcuda.so.1"
    command = [COMPILER, "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", str(library), str(STUB)]
    subprocess.run(command, check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def switch_on() -> None:
    """Make PyTorch's Python side accept the device of the stub, and not use functions that the stub lacks."""
    torch.cuda._initialized = True  # type: ignore[attr-defined]
    torch.cuda.is_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    torch.cuda.manual_seed = torch.cuda.manual_seed_all = lambda seed: None  # the device has no generator
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.accelerator.current_accelerator = lambda check_available=False: None
    # A module's weights are converted by a swap, which refuses tensors that FakeTensorMode has weak references to.
    torch.utils.weakref = SimpleNamespace(getweakrefs=lambda tensor: [])  # type: ignore[attr-defined]


class Waits(Exception):
    """Report that the host would wait for the device."""


_IN_PLACE = (torch.ops.aten._fused_sgd_.default, torch.ops.aten._fused_sgd_.tensor_lr)
"""Operators that change their arguments and return nothing. PyTorch (2.14) has no fakes for them."""
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class FakeCuda(FakeTensorMode):
    """Make tensors on the device fake, and leave tensors on the CPU real."""

    def __init__(self) -> None:
        super().__init__(allow_fallback_kernels=False)
        self.in_step = False

    def __deepcopy__(self, memo: dict[int, Any]) -> FakeCuda:
        return self  # each tensor of a copied model refers to it

    @contextmanager
    def step(self) -> Iterator[None]:
        """Refuse operations that make the host wait, within the block."""
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        fake = [tensor for tensor in given if isinstance(tensor, FakeTensor)]
        target = torch.device(kwargs.get("device") or "meta").type
        if not fake and target != "cuda":
            return func(*args, **kwargs)
        real = [tensor for tensor in given if not isinstance(tensor, FakeTensor)]
        # A number, which has no dimension, may come from the CPU: it is sent along with the kernel, not copied.
        lying = [tensor for tensor in real if tensor.ndim]
        if func in _COPIES and (real or target == "cpu") and self.in_step:
            raise Waits(f"{func}: a copy between the device and the CPU")
        if lying and func not in _COPIES:
            raise RuntimeError(f"{func}: tensors on cpu and on cuda:0")
        if func in _IN_PLACE:
            return None
        args, kwargs = tree_map_only(torch.Tensor, self._fake, (args, kwargs))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _fake(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.from_tensor(tensor)
