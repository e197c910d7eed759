"""Copies to a GPU, on a fake of CUDA: the calls in their order, and when memory may be written again."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from dist_train.config import Config
from dist_train.data.loading import loader
from dist_train.data.loading import preprocessing as pixels
from dist_train.data.loading.loader import train_batches
from dist_train.data.loading.order import Order
from dist_train.data.loading.transfer import Transfer
from dist_train.data.shards.index import ShardSet
from dist_train.data.splits import make_view
from dist_train.distributed.context import Context
from dist_train.training import window as windows

GPU = torch.device("cuda", 0)


class Cuda:
    """Imitate a GPU that works when ``finish`` is called. ``asked`` lists all calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.events: list[Event] = []
        self.current = Stream(self, "compute")
        self.on = self.current
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(self, "copy"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self.within)

    @contextmanager
    def within(self, stream: Stream) -> Any:
        before, self.on = self.on, stream
        yield
        self.on = before

    def finish(self, count: int) -> None:
        for event in self.events[:count]:
            event.done = True


class Event:
    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.done, self.number = cuda, False, len(cuda.events)
        cuda.events.append(self)

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        if not self.done:
            self.cuda.asked.append(f"host waits for event {self.number}")
            self.done = True


class Stream:
    def __init__(self, cuda: Cuda, name: str) -> None:
        self.cuda, self.name = cuda, name

    def record_event(self) -> Event:
        event = Event(self.cuda)
        self.cuda.asked.append(f"{self.name}: event {event.number}")
        return event

    def wait_event(self, event: Event) -> None:
        self.cuda.asked.append(f"{self.name} waits for event {event.number}")


class Tensor:
    """Stand for a tensor on the CPU, ``pinned`` or not, or on the GPU."""

    def __init__(self, cuda: Cuda, name: str, pinned: bool = False, is_cuda: bool = False) -> None:
        self.cuda, self.name, self.pinned, self.is_cuda = cuda, name, pinned, is_cuda

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> Tensor:
        self.cuda.asked.append(f"lock {self.name}")
        return Tensor(self.cuda, self.name, pinned=True)

    def to(self, device: torch.device, non_blocking: bool) -> Tensor:
        assert self.pinned and non_blocking and device == GPU, "else the host waits for the copy"
        self.cuda.asked.append(f"{self.cuda.on.name}: copy {self.name}")
        return Tensor(self.cuda, self.name, is_cuda=True)

    def record_stream(self, stream: Stream) -> None:
        self.cuda.asked.append(f"{self.name} is used on {stream.name}")


def test_a_copy_is_made_beside_the_computation_which_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    transfer = Transfer(GPU)
    assert transfer.send(Tensor(cuda, "images", pinned=True)).is_cuda
    wanted = ["copy: copy images", "copy: event 0", "compute waits for event 0", "images is used on compute"]
    assert cuda.asked == wanted
    transfer.send(Tensor(cuda, "labels"))
    assert cuda.asked[4:6] == ["lock labels", "copy: copy labels"]
    there = Tensor(cuda, "decoded", is_cuda=True)
    asked = len(cuda.asked)
    assert transfer.send(there) is there and len(cuda.asked) == asked


def test_memory_is_kept_until_its_copy_is_done_and_the_host_waits_only_for_old_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = Cuda(monkeypatch)
    transfer = Transfer(GPU, ahead=2)
    sent: list[np.ndarray[Any, Any]] = []

    def send(name: str) -> list[int]:
        """Send a tensor, and return the numbers of all tensors so far that may not be written yet."""
        tensor = Tensor(cuda, name, pinned=True)
        tensor.memory = np.zeros(1)  # type: ignore[attr-defined]
        sent.append(tensor.memory)  # type: ignore[attr-defined]
        transfer.send(tensor)
        return [n for n, memory in enumerate(sent) if any(kept.memory is memory for kept, _ in transfer._kept)]

    assert send("0") == [0] and send("1") == [0, 1]
    assert send("2") == [1, 2] and cuda.asked[-1] == "host waits for event 0"
    cuda.finish(2)
    assert send("3") == [2, 3] and not cuda.asked[-1].startswith("host")  # 1 is done, nobody waits
    cuda.finish(4)
    assert send("4") == [4]
    transfer.close()
    assert not transfer._kept and cuda.asked[-1] == "host waits for event 4"


def test_memory_that_dali_lent_is_kept_until_the_computation_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch)
    transfer = Transfer(GPU, ahead=2)
    transfer.used(Tensor(cuda, "decoded", is_cuda=True))
    assert cuda.asked == ["compute: event 0"] and len(transfer._kept) == 1
    transfer.used(Tensor(cuda, "on the CPU"))
    assert cuda.asked == ["compute: event 0"]
    transfer.used(Tensor(cuda, "decoded", is_cuda=True))
    ticks = iter((3.0, 10.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    assert transfer.used(Tensor(cuda, "decoded", is_cuda=True)) == 7
    assert cuda.asked[-1] == "host waits for event 0"


def test_time_that_the_gpu_computes_is_not_time_that_training_waits_for_data(
    shards: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs while the host waits for the GPU, and at no other time."""
    clock = [0.0]

    class Busy(Transfer):
        def used(self, tensor: torch.Tensor) -> float:
            clock[0] += 5
            return 5.0

    monkeypatch.setattr(loader, "Transfer", Busy)
    monkeypatch.setattr(windows.time, "perf_counter", lambda: clock[0])
    view = make_view(shards["train"], shards.classes, shards.classes[:6], "s")
    batches = train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 4))
    window = windows.Window(3, torch.device("cpu"))
    assert [window.next(batches).waited for _ in range(4)] == [0, 5, 5, 5]
    assert clock == [15] and window.data_seconds == 0


def test_on_a_cpu_a_transfer_does_nothing() -> None:
    transfer, tensor = Transfer(torch.device("cpu")), torch.zeros(3)
    assert transfer.send(tensor) is tensor
    transfer.used(tensor)
    transfer.close()
    assert not transfer._kept


def test_buffers_are_page_locked_where_a_gpu_copies_them(monkeypatch: pytest.MonkeyPatch) -> None:
    true, asked = torch.empty, []

    def empty(*arguments: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return true(*arguments, **options)

    monkeypatch.setattr(torch, "empty", empty)
    for locked in (True, False):
        buffers = pixels.Buffers(locked)
        lent = buffers.lend(4, (2, 3))
        assert lent.shape == (4, 2, 3) and lent.dtype == np.float32
        del lent
        buffers.lend(3, (2, 3))
    assert asked == [True, False], "and each is used again"


def test_the_loader_writes_into_no_batch_that_is_still_being_copied(
    shards: ShardSet, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake device copies as late as possible: when the host waits for it, or at the end."""
    seen: list[tuple[bytes, bytes]] = []

    class Late(Transfer):
        def send(self, tensor: torch.Tensor) -> torch.Tensor:
            sent = tensor.clone()
            self._keep(tensor, Copy(tensor))
            return sent

    class Copy:
        """Look at the memory of a tensor without holding the tensor."""

        def __init__(self, tensor: torch.Tensor) -> None:
            self.place = tensor.data_ptr(), tensor.nbytes
            self.before = ctypes.string_at(*self.place)

        def query(self) -> bool:
            return False

        def synchronize(self) -> None:
            seen.append((self.before, ctypes.string_at(*self.place)))

    monkeypatch.setattr(loader, "Transfer", Late)
    view = make_view(shards["train"], shards.classes, shards.classes[:6], "s")
    assert len(list(train_batches(view, Order(len(view), 24, 0), config.data, Context(), range(0, 9)))) == 9
    assert len(seen) == 18 and all(before == copied for before, copied in seen)
