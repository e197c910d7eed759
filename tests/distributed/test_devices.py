"""The GPU that a rank computes on, and the errors where it has none, with ``torch.cuda`` patched."""

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures.processes import WarmPython

from dist_train.distributed import context, devices
from dist_train.distributed.context import Context, backends
from dist_train.distributed.devices import Seat, allocated, choose_device, identity, refuse_shared, unusable
from dist_train.distributed.rendezvous import Place
from dist_train.errors import UserError

SLURM_JOB = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "1", "SLURM_STEP_GPUS": "0"}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return ``gpus(4)``, after which torch sees four GPUs."""

    def show(number: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: number)

    show(0)
    return show


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device_files", list)


@pytest.mark.parametrize(
    ("place", "visible", "index"),
    [
        (Place(5, 8, 1, 4, "torchrun"), 4, 1),
        (Place(5, 8, 1, 4, "slurm"), 4, 1),
        (Place(7, 8, 3, 4, "slurm"), 1, 0),  # SLURM shows each task its own
        (Place(7, 8, 3, 4, "torchrun"), 1, 0),  # so does a wrapper that sets CUDA_VISIBLE_DEVICES
        (Place(), 8, 0),
        (Place(1, 2, 1, 2, "submitit"), 2, 1),
    ],
)
def test_a_rank_takes_the_gpu_of_its_local_rank_or_the_only_one(
    gpus: Any, place: Place, visible: int, index: int
) -> None:
    gpus(visible)
    assert choose_device(place, {}) == torch.device("cuda", index)


def test_more_ranks_than_gpus_are_refused(gpus: Any) -> None:
    gpus(2)
    with pytest.raises(UserError, match=r"rank 6: local rank 2 of 4 but 2 visible GPUs.*gpus_per_node"):
        choose_device(Place(6, 8, 2, 4, "slurm"), {})


@pytest.mark.parametrize(
    ("env", "why"),
    [
        (SLURM_JOB, "SLURM_GPUS_ON_NODE=1"),
        ({"SLURM_JOB_ID": "7", "SLURM_JOB_GPUS": "0"}, "SLURM_JOB_GPUS=0"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "CUDA_VISIBLE_DEVICES=2,3"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-5ec4", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2"}, "SLURM"),
    ],
)
def test_gpus_that_were_allocated_and_cannot_be_used_end_the_start(
    gpus: Any, no_files: None, monkeypatch: pytest.MonkeyPatch, env: dict[str, str], why: str
) -> None:
    monkeypatch.setattr(devices, "driver_cuda", lambda: (12, 4))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=rf"rank 0: .*{why}.*driver takes CUDA 12.4.*built for CUDA 13.*cuda12"):
        choose_device(Place(), env)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"SLURM_JOB_ID": "7"},  # a job without GPUs
        {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "0", "SLURM_JOB_GPUS": ""},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"CUDA_VISIBLE_DEVICES": "-1"},
        {**SLURM_JOB, "CUDA_VISIBLE_DEVICES": ""},  # the user wants the CPU
        {"CUDA_VISIBLE_DEVICES": "NoDevFiles", "SLURM_JOB_ID": "7"},
    ],
)
def test_the_cpu_is_taken_where_no_gpu_is_meant(gpus: Any, no_files: None, env: dict[str, str]) -> None:
    assert allocated(env) is None
    assert choose_device(Place(), env) == torch.device("cpu")


def test_a_machine_with_a_gpu_and_an_unusable_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    files = devices.device_files(tmp_path)
    assert [path.name for path in files] == ["nvidia0", "nvidia1"]
    monkeypatch.setattr(devices, "device_files", lambda: files)
    assert "nvidia0" in str(allocated({}))
    assert allocated({"SLURM_JOB_ID": "7"}) is None, "the node's, not the job's"
    assert allocated({"CUDA_VISIBLE_DEVICES": ""}) is None


@pytest.mark.parametrize(
    ("built", "driver", "reason", "remedy"),
    [
        (None, (13, 0), "built without CUDA", "torch from PyPI"),
        ("13.0", None, "libcuda.so.1", "--nv"),
        ("13.0", (12, 4), "takes CUDA 12.4", "cuda12"),
        ("13.0", (11, 8), "takes CUDA 11.8", "a newer driver"),
        ("12.8", (11, 4), "takes CUDA 11.4", "a newer driver"),
        ("13.0", (13, 1), "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES=9 names"),
    ],
)
def test_each_cause_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, built: str | None, driver: tuple[int, int] | None, reason: str, remedy: str
) -> None:
    def fail() -> None:
        raise RuntimeError("No CUDA GPUs are available\nand more lines")

    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(devices, "driver_cuda", lambda: driver)
    monkeypatch.setattr(torch.cuda, "init", fail)
    why, what = unusable({"CUDA_VISIBLE_DEVICES": "9"})
    assert reason in why and remedy in what and "\n" not in why


def test_the_driver_is_asked_through_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(pointer: Any) -> int:
        pointer._obj.value = 12080
        return 0

    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: SimpleNamespace(cuDriverGetVersion=answer))
    assert devices.driver_cuda() == (12, 8)

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(devices.ctypes, "CDLL", missing)
    assert devices.driver_cuda() is None


def test_a_gpu_and_a_part_of_a_gpu_are_identified_by_their_uuids(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="5ec41dd0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    gpu = torch.device("cuda", 0)
    assert identity(gpu, {}) == "GPU-5ec41dd0"
    assert identity(gpu, {"CUDA_VISIBLE_DEVICES": "3"}) == "GPU-5ec41dd0"
    assert identity(gpu, {"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"}) == "MIG-1"
    assert identity(torch.device("cpu"), {}) is None


def test_ranks_on_one_gpu_are_refused_by_name() -> None:
    def seats(*gpus: str | None) -> list[Seat]:
        return [Seat(f"node-{n // 2}", "NVIDIA H100" if gpu else "CPU", gpu) for n, gpu in enumerate(gpus)]

    refuse_shared(seats("GPU-a", "GPU-b", "GPU-c"))
    refuse_shared(seats(None, None))
    refuse_shared(seats("MIG-1", "MIG-2"))
    with pytest.raises(UserError, match=r"ranks 2, 3 on node-1 share one GPU \(NVIDIA H100, GPU-c\)"):
        refuse_shared(seats("GPU-a", "GPU-b", "GPU-c", "GPU-c"))
    with pytest.raises(UserError, match=r"no GPU on node-1 for ranks 2, 3"):
        refuse_shared(seats("GPU-a", "GPU-b", None, None))
    with pytest.raises(UserError, match=r"ranks 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. on node-0 share"):
        refuse_shared(seats(*["GPU-a"] * 9))


def test_exchanges_outlast_the_watchdog_that_names_the_culprit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(context.dist, "init_process_group", lambda backend, **more: asked.update(more, backend=backend))
    context.join_group(Context(world=2, device=torch.device("cuda", 0)), hang_timeout=1800)
    assert asked["backend"] == "cuda:nccl,cpu:gloo"
    assert asked["timeout"].total_seconds() > 1800 + 60
    context.join_group(Context(world=2), hang_timeout=float("inf"))  # a watchdog that never acts
    assert asked["timeout"].total_seconds() > 30 * 86400
    assert backends(torch.device("cpu")) == "gloo"


DEEPSPEED = """
import os, sys, torch, torch.distributed as dist
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.accelerator.real_accelerator import set_accelerator
chosen = []
class Recording(CPU_Accelerator):
    def set_device(self, index):
        chosen.append(torch.device(index).index if isinstance(index, (str, torch.device)) else index)
    def device_name(self, index=None):
        chosen.extend([] if index is None else [int(index)])
        return "cpu"
set_accelerator(Recording())
from dist_train.config import PretrainConfig
from dist_train.distributed.context import Context
from dist_train.training.optimizer import make_optimizer
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.deepspeed import DeepSpeed
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
for strategy in sys.argv[1:]:
    config = PretrainConfig(strategy=strategy, global_batch=4, precision="fp32", optimizer="sgd")
    model = torch.nn.Linear(4, 4)
    mine = Context(local_rank=3, local_world=4, device=torch.device("cuda", 0))
    DeepSpeed(model, make_optimizer(model, config), MixedPrecision("fp32", torch.device("cpu")), config, mine)
    print(strategy, sorted(set(filter(lambda index: index is not None, chosen))))
    chosen.clear()
"""


ALL_GPUS_SHOWN = {"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}


@pytest.mark.parametrize(("strategies", "env"), [(("zero1", "zero3"), {}), (("zero1",), ALL_GPUS_SHOWN)], ids=str)
def test_deepspeed_computes_on_the_contexts_gpu(
    strategies: tuple[str, ...], env: dict[str, str], warm_python: WarmPython
) -> None:
    around = {key: value for key, value in warm_python.environment().items() if key not in ("LOCAL_RANK", "RANK")}
    command = [warm_python.python, "-c", DEEPSPEED, *strategies]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**around, "DS_ACCELERATOR": "cpu", **env}
    )
    for strategy in strategies:
        assert f"{strategy} [0]" in done.stdout, done.stdout[-2000:] + done.stderr[-2000:]
