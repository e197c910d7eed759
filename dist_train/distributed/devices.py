"""Choose the GPU that a rank computes on, and say why there is none where there should be."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_train.distributed.rendezvous import Place
from dist_train.errors import UserError, counted

# Variables that SLURM sets for the tasks and scripts of a job with GPUs (sbatch and srun, "OUTPUT ENVIRONMENT
# VARIABLES"), and the value of each that means none.
_SLURM_GPUS = {"SLURM_GPUS_ON_NODE": "0", "SLURM_STEP_GPUS": "", "SLURM_JOB_GPUS": ""}
_NONE_WANTED = ("", "-1", "NoDevFiles")


def choose_device(place: Place, env: Mapping[str, str] = os.environ) -> torch.device:
    """Return the device of a rank: its GPU, or the CPU where no GPU is meant for it.

    A launcher shows a process all GPUs of its node, of which the local rank names one, or only the
    process's own, which is then number 0. ``refuse_shared`` finds out whether two ranks chose the same.

    Raises:
        UserError: there are fewer GPUs than ranks, or GPUs were allocated and torch cannot use them.
    """
    if not torch.cuda.is_available():
        if fault := unusable_though_allocated(env):
            raise UserError(f"rank {place.rank}: {fault}, or set CUDA_VISIBLE_DEVICES= (empty) to compute on the CPU")
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = place.local_rank if visible > 1 else 0
    if index >= visible:
        raise UserError(
            f"rank {place.rank}: local rank {place.local_rank} of {place.local_world} but "
            f"{counted(visible, 'visible GPU')}; "
            f"start no more ranks a node than it has GPUs (gpus_per_node, --nproc-per-node)"
        )
    return torch.device("cuda", index)


def allocated(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the evidence that this process is meant to have GPUs, in words, or None.

    An empty CUDA_VISIBLE_DEVICES means that it is not. Under SLURM only SLURM's allocation counts, for a node may have
    GPUs that the job does not.
    """
    shown = env.get("CUDA_VISIBLE_DEVICES")
    if shown is not None and shown.strip() in _NONE_WANTED:
        return None
    for name, none in _SLURM_GPUS.items():
        if env.get(name, "") not in ("", none):
            return f"SLURM allocated GPUs ({name}={env[name]})"
    if "SLURM_JOB_ID" in env:
        return None
    if shown:
        return f"CUDA_VISIBLE_DEVICES={shown} names GPUs"
    nodes = device_files()
    return f"this machine has {nodes[0]}" if nodes else None


def device_files(folder: Path = Path("/dev")) -> list[Path]:
    """Return the GPUs that this process may open, as the driver's device files (/dev/nvidia0, ...)."""
    files = sorted(path for path in folder.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit())
    return [path for path in files if os.access(path, os.R_OK | os.W_OK)]


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA version that the driver supports, as (major, minor); None where its library is missing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def unusable(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return why ``torch.cuda.is_available`` is false here, and what to do about it.

    A build of torch runs on every driver of its CUDA's major version (NVIDIA, "CUDA Compatibility": minor version
    compatibility).
    """
    if torch.version.cuda is None:
        return "it is built without CUDA", "pip install torch from PyPI"
    built, driver = int(torch.version.cuda.split(".")[0]), driver_cuda()
    if driver is None:
        return (
            "the driver's library, libcuda.so.1, is not here",
            "in a container start with --nv (Apptainer) or --gpus all (Docker), else install the driver",
        )
    if driver[0] < built:
        reason = (
            f"its driver takes CUDA {driver[0]}.{driver[1]} and torch {torch.__version__} is built for CUDA {built}"
        )
        if driver[0] == 12:
            return (
                reason,
                "install for CUDA 12 (make CUDA=12, or the extra cuda12; docs/training.md), or a newer driver",
            )
        return reason, "install a newer driver"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
    else:
        reason = "its driver shows no GPU"
    shown = env.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return reason, f"see that CUDA_VISIBLE_DEVICES={shown} names GPUs of this node"
    return reason, "nvidia-smi on this node says more"


def unusable_though_allocated(env: Mapping[str, str] = os.environ) -> str | None:
    """Return, where torch has no GPU, a text with the evidence that there should be a GPU, the reason and the remedy;
    None where no GPU is meant."""
    if (evidence := allocated(env)) is None:
        return None
    reason, remedy = unusable(env)
    return f"{evidence}, but torch cannot use a GPU: {reason}; {remedy}"


def identity(device: torch.device, env: Mapping[str, str] = os.environ) -> str | None:
    """Return a name that no other GPU has: its UUID, or the UUID of a part of a GPU (MIG); None for a CPU."""
    if device.type != "cuda":
        return None
    shown = env.get("CUDA_VISIBLE_DEVICES", "")
    if shown.startswith("MIG-"):  # CUDA shows a process only the first part
        return shown.split(",")[0]
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


@dataclass(frozen=True)
class Seat:
    """Say where a rank computes.

    Attributes:
        host: name of its node.
        kind: name of its GPU, or "CPU".
        gpu: its GPU's ``identity``; None for a CPU.
        cpus: its share of the node's CPUs.
        warning: what the rank lacks, in words; empty where nothing is missing.
    """

    host: str
    kind: str
    gpu: str | None = None
    cpus: int = 1
    warning: str | None = None


def refuse_shared(seats: list[Seat]) -> None:
    """Refuse ranks that share a GPU, and ranks on GPUs beside ranks without a GPU. ``seats`` is in the order of ranks.

    Raises:
        UserError: ranks share a GPU, or only some have a GPU; names ranks, hosts and GPU.
    """
    ranks: dict[str | None, list[int]] = {}
    for rank, seat in enumerate(seats):
        ranks.setdefault(seat.gpu, []).append(rank)
    without = ranks.pop(None, [])
    for gpu, sharing in ranks.items():
        if len(sharing) > 1:
            seat = seats[sharing[0]]
            raise UserError(
                f"ranks {_listed(sharing)} on {seat.host} share one GPU ({seat.kind}, {gpu}); start one rank a GPU: "
                f"gpus_per_node must be what tasks_per_node is, under torchrun --nproc-per-node the number of GPUs"
            )
    if ranks and without:
        hosts = ", ".join(dict.fromkeys(seats[rank].host for rank in without[:8]))
        raise UserError(
            f"no GPU on {hosts} for {'rank' if len(without) == 1 else 'ranks'} {_listed(without)}, and the others have "
            "one; give each rank a GPU, "
            f"or set CUDA_VISIBLE_DEVICES= (empty) for all to compute on CPUs"
        )


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
