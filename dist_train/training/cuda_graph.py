"""A training step as a CUDA graph, for steps that the GPU computes faster than the host launches them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dist_train.errors import UserError

_EAGER = 3  # calls before the capture, in which libraries make what they make once (PyTorch's notes on CUDA graphs)


class Graphed:
    """Calls ``step``: a few times as it is, then records one call, and from then on replays it in one launch.

    Each call is one step, those before the capture too; recording computes nothing. ``step`` must do the same in
    every call: the same operations on the same shapes, on tensors that stay where they are (its inputs are copied
    to such), and without a number for the host. A number that changes, as a learning rate, must be a tensor.

    Args:
        step: tensors on the device -> a tensor that needs no gradient; the next call overwrites it.
        key: the option that asked for this, for the message.
    """

    def __init__(self, step: Callable[..., torch.Tensor], device: torch.device, key: str) -> None:
        self.step, self.key = step, key
        self._stream = torch.cuda.Stream(device)  # a capture needs one that is not the default
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Raises UserError where the step cannot be captured; nothing of it was computed then."""
        self._calls += 1
        if self._calls <= _EAGER:
            now = torch.cuda.current_stream()
            self._stream.wait_stream(now)
            with torch.cuda.stream(self._stream):
                found = self.step(*inputs)
            now.wait_stream(self._stream)
            return found
        if self._graph is None:
            self._inputs = [given.clone() for given in inputs]
            self._graph = self._capture()
        for kept, given in zip(self._inputs, inputs, strict=True):
            kept.copy_(given)
        self._graph.replay()
        return self._found

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._found = self.step(*self._inputs)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.key}: the step cannot be captured ({reason}); set it to false") from error
        return graph
