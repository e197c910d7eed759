"""Who am I: rank, world and device, from torchrun, from SLURM, or as a lone process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from dist_train.errors import UserError

# Variables that together name a rank: torchrun's own, and those that srun sets for each task.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Progress:
    """What this process is doing, for whoever watches it.

    Attributes:
        text: "pretrain: step 120".
        since: ``time.monotonic()`` of the last progress.
        patient: nothing is expected to move for a long time (waiting for another rank).
    """

    text: str = "starting"
    since: float = field(default_factory=time.monotonic)
    patient: bool = False


@dataclass(frozen=True)
class Context:
    """This process among all.

    Attributes:
        rank, world: number of this process and of all processes.
        local_rank, local_world: the same on this node.
        device: ``cuda:LOCAL_RANK`` or ``cpu``.
        store: where the ranks met; None for a lone process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    store: Any = field(default=None, compare=False, repr=False)
    progress: Progress = field(default_factory=Progress, compare=False, repr=False)

    def doing(self, text: str, patient: bool = False) -> None:
        """Note progress. Costs nothing worth naming: call it at every step."""
        self.progress.text, self.progress.patient, self.progress.since = text, patient, time.monotonic()

    @property
    def main(self) -> bool:
        """Whether this is rank 0: the one that prints, logs and saves."""
        return self.rank == 0

    def barrier(self, name: str) -> None:
        """All ranks meet. ``name`` must be the same on all; it appears when one is missing.

        Through the store and without a short time-out, for rank 0 may be at work for hours (a pack,
        class means) while the others have nothing to do but wait.
        """
        if self.world == 1:
            return
        before = self.progress.text
        self.doing(f"waiting for the other ranks at {name}", patient=True)
        store = dist.distributed_c10d._get_default_store()
        count = store.add(f"barrier/{name}", 1)
        turn = (count - 1) // self.world  # a name may be used again
        if count % self.world == 0:
            store.set(f"barrier/{name}/{turn}", "open")
        store.wait([f"barrier/{name}/{turn}"], timedelta(days=7))
        self.doing(before)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor


def read_environment(env: Mapping[str, str]) -> tuple[int, int, int, int]:
    """(rank, world, local rank, local world) from the environment.

    torchrun's variables win where they are all set, then SLURM's; none of either is a lone process.

    Raises:
        UserError: torchrun's variables are set in part, or contradict each other.
    """
    have = [name for name in _TORCHRUN if name in env]
    if "RANK" in env or "WORLD_SIZE" in env:
        lacking = [name for name in _TORCHRUN if name not in env]
        if lacking:
            raise UserError(
                f"environment: {', '.join(have)} set but {', '.join(lacking)} not; start with torchrun, "
                f"or unset them for a lone process"
            )
        names: tuple[str, ...] = _TORCHRUN[:4]
    elif all(name in env for name in _SLURM):
        names = _SLURM[:4]
    else:
        return 0, 1, 0, 1
    try:
        rank, world, local_rank, local_world = (int(env[name]) for name in names)
    except ValueError:
        raise UserError(f"environment: {', '.join(names)} must be whole numbers") from None
    if not (0 <= rank < world and 0 <= local_rank < local_world <= world):
        raise UserError(
            f"environment: rank {rank} of {world}, local {local_rank} of {local_world} contradict each other"
        )
    return rank, world, local_rank, local_world


def usable_cpus() -> int:
    """CPUs that this process may run on (fewer than the machine has, under SLURM or taskset)."""
    return len(os.sched_getaffinity(0))


@contextmanager
def start(env: Mapping[str, str] = os.environ, timeout: float = 600.0, join: bool = True) -> Iterator[Context]:
    """Meet the other ranks, and join the process group (gloo on CPUs, NCCL on GPUs) for as long as the
    block runs.

    Args:
        timeout: seconds until all ranks must have come.
        join: False: meet only, and leave ``join_group`` to the caller.

    Raises:
        UserError: a rank did not come, or the environment is wrong.
    """
    rank, world, local_rank, local_world = read_environment(env)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        visible = torch.cuda.device_count()
        index = local_rank if visible > 1 else 0
        if index >= visible or (visible == 1 and local_world > 1 and "SLURM_PROCID" not in env):
            raise UserError(f"rank {rank}: local rank {local_rank} but {visible} visible GPU(s); start one rank a GPU")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in env or world > 1:
        # torchrun sets one thread a rank; take this rank's share of the CPUs instead.
        torch.set_num_threads(max(1, usable_cpus() // local_world))
    store = None
    if world > 1:
        try:
            store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=timedelta(seconds=timeout)))
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"rank {rank}: the {world} ranks did not meet at {env['MASTER_ADDR']}:{env['MASTER_PORT']} within "
                f"{timeout:g} s (monitor.start_timeout): {reason}"
            ) from None
    context = Context(rank, world, local_rank, local_world, device, store)
    if join:
        join_group(context)
    try:
        yield context
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def join_group(context: Context) -> None:
    """Connect all ranks that have met."""
    if context.world > 1:
        backend = "cuda:nccl,cpu:gloo" if context.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=context.store, rank=context.rank, world_size=context.world)
