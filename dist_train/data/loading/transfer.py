"""Batches on their way to a GPU, and their memory while either side still works on it.

A copy to a GPU, and every computation on it, goes on after the call that asked for it has returned. So the memory of a
batch is kept here until an event says that the GPU is through with it; only then may the loader, or DALI, write the
next batch there. On a CPU none of this does anything.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch


class Transfer:
    """Copy tensors to a device on a stream of its own, beside what the device computes.

    For that their memory must be page-locked (``preprocessing.Buffers``); other tensors are first copied into such
    memory.
    """

    def __init__(self, device: torch.device, ahead: int = 4) -> None:
        """Copy to ``device``. The last ``ahead`` tensors are not waited for; a batch has two, images and labels."""
        self.device, self._ahead = device, ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._kept: deque[tuple[torch.Tensor, Any]] = deque()

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor on the device, for use on the current stream; the memory format stays. A tensor that is
        there already is returned as it is."""
        if self._stream is None or tensor.is_cuda:
            return tensor
        locked = tensor if tensor.is_pinned() else tensor.pin_memory()
        with torch.cuda.stream(self._stream):
            sent = locked.to(self.device, non_blocking=True)
            copied = self._stream.record_event()
        current = torch.cuda.current_stream(self.device)
        current.wait_event(copied)
        sent.record_stream(current)  # else the next copy could take its place while it is in use
        self._keep(locked, copied)
        return sent

    def used(self, tensor: torch.Tensor) -> float:
        """Note that all work with a tensor of DALI's has been queued on the device.

        DALI knows nothing of torch's streams, and takes the memory again as soon as Python lets go of it.

        Returns:
            Seconds in which the host waited for the device to be through with an older tensor.
        """
        start = time.perf_counter()
        if self._stream is not None and tensor.is_cuda:
            self._keep(tensor, torch.cuda.current_stream(self.device).record_event())
        return time.perf_counter() - start

    def close(self) -> None:
        """Wait for all copies that are on their way."""
        while self._kept:
            self._release()

    def _keep(self, tensor: torch.Tensor, until: Any) -> None:
        self._kept.append((tensor, until))
        while self._kept and (len(self._kept) > self._ahead or self._kept[0][1].query()):
            self._release()

    def _release(self) -> None:
        """Let go of the oldest tensor, once its event has come."""
        self._kept[0][1].synchronize()
        self._kept.popleft()
