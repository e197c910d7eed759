"""Replay a training step as a CUDA graph, where the GPU computes a step faster than the host launches it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dist_train.errors import UserError

_EAGER_CALLS = 3  # before the capture: in them libraries make what they make once (PyTorch's notes on CUDA graphs)


class GraphedStep:
    """Call ``step`` a few times as it is, then record a call, and from then on replay the recording in one launch.

    Every call is a step, those before the capture too; recording computes nothing. ``step`` must do the same in every
    call: the same operations on the same shapes, on tensors that stay in their place (its inputs are copied to such),
    without a number for the host. A number that changes, such as a learning rate, must be a tensor.

    Args:
        step: takes tensors on the device and returns a tensor that needs no gradient; the next call overwrites it.
        key: the option that asked for the graph, for the error.
    """

    def __init__(self, step: Callable[..., torch.Tensor], device: torch.device, key: str) -> None:
        self.step, self.key = step, key
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # a capture needs a stream besides the default
        self._graph: torch.cuda.CUDAGraph | None = None
        self._calls = 0

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Make a step on ``inputs``.

        Raises:
            UserError: the step cannot be captured; nothing of it was computed.
        """
        self._calls += 1
        if self._calls <= _EAGER_CALLS:
            now = torch.cuda.current_stream()
            self._stream.wait_stream(now)
            with torch.cuda.stream(self._stream):
                result = self.step(*inputs)
            now.wait_stream(self._stream)
            return result
        if self._graph is None:
            self._inputs = [value.clone() for value in inputs]
            self._graph = self._capture()
        for own, value in zip(self._inputs, inputs, strict=True):
            own.copy_(value)
        self._graph.replay()
        return self._result

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._result = self.step(*self._inputs)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.key}: the step cannot be captured ({reason}); set it to false") from error
        return graph
