"""This process among all: its rank, the world's size and its device, under torchrun, SLURM, or alone."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dist_train.config import MonitorConfig
from dist_train.distributed.cpus import cpus_per_rank, usable_cpus
from dist_train.distributed.devices import Seat, choose_device, identity, refuse_shared
from dist_train.distributed.rendezvous import meet, read_environment, wait_for_each_other
from dist_train.errors import counted

_LONGEST_TIMEOUT = 10 * 365 * 86400.0  # seconds; a process group takes no infinite time-out


@dataclass
class Progress:
    """Say what this process is doing, for the monitor.

    Attributes:
        text: such as "pretrain: step 120 of 9000".
        since: ``time.monotonic()`` of the last progress.
        patient: whether no progress is expected for a long time (waiting for another rank).
    """

    text: str = "starting"
    since: float = field(default_factory=time.monotonic)
    patient: bool = False


@dataclass(frozen=True)
class Context:
    """Identify this process among all, and talk to the others.

    Attributes:
        rank, world: this process's number, and how many there are.
        local_rank, local_world: the same on this node.
        device: this rank's GPU, or the CPU (``devices.choose_device``).
        store, address: the store at which the ranks met, and its host and port; None and "" for a lone process.
        progress: what this process is doing.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Any = field(default=None, compare=False, repr=False)
    address: tuple[str, int] = ("", 0)
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)

    def report_progress(self, text: str, patient: bool = False) -> None:
        """Note progress. Cheap enough to call at every step."""
        self.progress.text, self.progress.patient, self.progress.since = text, patient, time.monotonic()

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which prints, logs and saves."""
        return self.rank == 0

    def barrier(self, name: str) -> None:
        """Wait until all ranks are here. ``name`` must be the same on all; it is shown when a rank is missing.

        The ranks wait at the store, without a short time-out: rank 0 may work for hours (a pack, class means) while the
        others have nothing else to do.
        """
        if self.world == 1:
            return
        before = self.progress.text
        self.report_progress(f"waiting for the other ranks at {name}", patient=True)
        store = dist.distributed_c10d._get_default_store()
        wait_for_each_other(store, f"barrier/{name}", self.world, timedelta(days=7))
        self.report_progress(before)

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor


@contextmanager
def start(
    env: Mapping[str, str] = os.environ, timeout: float = 600.0, join: bool = True, folder: Path | None = None
) -> Iterator[Context]:
    """Meet the other ranks, and join the process group (gloo on CPUs, NCCL on GPUs) for this context.

    Args:
        timeout: seconds within which all ranks must come.
        join: whether to join the process group; False leaves ``join_group`` to the caller.
        folder: a folder that all ranks see, where those without an address find each other (SLURM).

    Raises:
        UserError: a rank did not come, the environment is wrong, or GPUs cannot be used (``devices``).
    """
    place = read_environment(env)
    device = choose_device(place, env)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in env or place.world > 1:
        # torchrun sets one thread a rank; take this rank's share of the CPUs instead.
        torch.set_num_threads(cpus_per_rank(place.local_world, env))
    store, address = meet(place, env, folder, timeout) if place.world > 1 else (None, ("", 0))
    context = Context(place.rank, place.world, place.local_rank, place.local_world, device, store, address)
    if join:
        join_group(context)
    try:
        yield context
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def backends(device: torch.device) -> str:
    """Return the process group's backends: NCCL for tensors on a GPU, gloo for those on the CPU."""
    return "cuda:nccl,cpu:gloo" if device.type == "cuda" else "gloo"


def join_group(context: Context, hang_timeout: float = MonitorConfig.hang_timeout) -> None:
    """Connect all ranks that have met.

    Args:
        hang_timeout: seconds after which ``monitor`` ends a rank that hangs. An exchange waits twice as long: NCCL's
            own watchdog would end the process without naming the rank.
    """
    if context.world > 1:
        dist.init_process_group(
            backends(context.device),
            store=context.store,
            rank=context.rank,
            world_size=context.world,
            timeout=timedelta(seconds=min(2 * hang_timeout, _LONGEST_TIMEOUT)),
        )


def placement(context: Context, env: Mapping[str, str] = os.environ) -> list[str]:
    """Return a line on where the ranks are and what they have, and a warning for each rank that has fewer CPUs than it
    should. All ranks call it.

    Raises:
        UserError: ranks share a GPU, or only some have a GPU.
    """
    name = torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "CPU"
    cpus, allocated = usable_cpus(), env.get("SLURM_CPUS_PER_TASK", "")
    warning = None
    if allocated.isdigit() and int(allocated) > cpus:
        warning = (
            f"rank {context.rank} may use {counted(cpus, 'CPU')} of the {allocated} asked for; "
            "pass --cpus-per-task to srun"
        )
    host = env.get("SLURMD_NODENAME") or socket.gethostname()
    seat = Seat(host, name, identity(context.device, env), cpus_per_rank(context.local_world, env), warning)
    seats: list[Seat] = context.gather(seat)
    refuse_shared(seats)
    nodes = list(dict.fromkeys(seat.host for seat in seats))
    kinds = ", ".join(dict.fromkeys(seat.kind for seat in seats))
    interface = env.get("GLOO_SOCKET_IFNAME")
    line = (
        f"{counted(context.world, 'rank')} on {', '.join(nodes[:8])}{', ...' if len(nodes) > 8 else ''} ({kinds}, "
        f"{counted(min(seat.cpus for seat in seats), 'CPU')} each" + (f", over {interface})" if interface else ")")
    )
    return [line, *(seat.warning for seat in seats if seat.warning)]
