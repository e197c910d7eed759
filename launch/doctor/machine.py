"""Checks of this machine: software, GPUs, CPUs, network and folders."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import torch
import torch.distributed as dist

from dist_train.distributed.cpus import usable_cpus
from dist_train.distributed.devices import device_files, driver_cuda, unusable_though_allocated
from dist_train.distributed.rendezvous import interface_towards
from launch.doctor.line import Level, Line

_PROBE = 64  # MiB that are written to measure the speed of a folder


def software() -> Iterator[Line]:
    """Check the versions of Python, torch and DALI, and that those two are for the same CUDA."""
    yield Line("ok", "python", platform.python_version())
    yield Line("ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    yield _dali_wheel()


def _dali_wheel() -> Line:
    cuda = (torch.version.cuda or "").split(".")[0]
    wheels = {  # by name: a wheel comes twice where sys.path has its folder twice, as lib and as lib64
        name: wheel.version
        for wheel in distributions()
        if re.fullmatch(r"nvidia-dali.*cuda\d+", name := wheel.metadata["Name"] or "")
    }
    names = ", ".join(f"{name} {version}" for name, version in wheels.items())
    if not wheels:
        return Line("error", "dali", "no wheel; pip install -e '.[cuda13]', or '.[cuda12]' for a driver of CUDA 12")
    if len(wheels) > 1:
        remedy = "pip uninstall both, and install that of torch's CUDA again"
        return Line("error", "dali", f"{names} lie in one folder; {remedy}")
    if cuda and cuda not in names.partition("cuda")[2][:2]:
        remedy = f"pip install -e '.[cuda{cuda}]' in a new folder"
        return Line("error", "dali", f"{names} beside torch for CUDA {cuda}; {remedy}")
    return Line("ok", "dali", names)


def accelerators() -> Iterator[Line]:
    """Check the driver and the GPUs, or, where there is no GPU, what the CPU lacks."""
    driver = driver_cuda()
    if driver is not None:
        fits = f"the extra cuda{min(driver[0], 13)} fits" if driver[0] >= 12 else "too old"
        level: Level = "ok" if driver[0] >= 12 else "warning"
        yield Line(level, "driver", f"takes CUDA {driver[0]}.{driver[1]}; {fits}")
    if torch.cuda.is_available():
        yield from _gpus()
    elif fault := unusable_though_allocated():
        yield Line("error", "gpu", fault)
    else:
        hidden = " (CUDA_VISIBLE_DEVICES hides this machine's)" if device_files() and driver is not None else ""
        yield Line("warning", "gpu", f"none here{hidden}; everything runs on the CPU")
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
        if not re.search(r"\b(amx_bf16|avx512_bf16)\b", flags):
            yield Line("warning", "bf16", "this CPU emulates it; set the three precisions to fp32, as demo does")


def _gpus() -> Iterator[Line]:
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield Line("ok", "gpu", f"{index}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Line("warning", "bf16", "not in hardware; set the three precisions to fp16")
    if not dist.is_nccl_available():
        yield Line("error", "nccl", "this torch has none; install torch from PyPI")


def processors() -> Iterator[Line]:
    """Check how many CPUs this process may use, and how many files it may open."""
    yield _cpus()
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < 4096:
        text = f"{files} may be open at a time; ImageNet has about 1,200 shards: ulimit -n 8192"
        yield Line("warning", "files", text)


def _cpus() -> Line:
    usable, present = usable_cpus(), os.cpu_count() or 1
    allocated = os.environ.get("SLURM_CPUS_PER_TASK", "")
    text = f"{usable} of {present} usable"
    if allocated.isdigit() and usable < int(allocated):
        remedy = f"srun does not take them over: --cpus-per-task={allocated}"
        return Line("error", "cpus", f"{text}, {allocated} asked for; {remedy}")
    if usable == 1 and present > 1:
        remedy = "ask for more CPUs a task, or check taskset"
        return Line("warning", "cpus", f"{text}: decoding will be slow; {remedy}")
    return Line("ok", "cpus", text)


def network() -> Iterator[Line]:
    """Check that other ranks can find this machine by its name, and connect to a port of it."""
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        text = f"{host} has no address; ranks find each other by interface, torchrun may not"
        yield Line("warning", "host name", text)
        address = "127.0.0.1"
    interface = interface_towards(address)
    text = f"{host} is {address}" + (f" on {interface}" if interface else "")
    if address.startswith("127."):
        text += ", a loopback address: set --rdzv-endpoint to another name under torchrun"
    yield Line("ok", "network", text)
    yield _ports(address)


def _ports(address: str) -> Line:
    try:
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen(1)
            socket.create_connection((address, server.getsockname()[1]), timeout=5).close()
    except OSError as error:
        text = f"cannot reach a port of this machine at {address}: {error}; look at its firewall"
        return Line("error", "ports", text)
    return Line("ok", "ports", "a free port can be taken and reached")


def folder(subject: str, path: Path) -> Iterator[Line]:
    """Check the speed, locks, renames and clock of a folder, which is made where it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".doctor-") as temporary:
            file = Path(temporary) / "a"
            speed = _write_speed(file)
            skew = file.stat().st_mtime - time.time()
            file = file.replace(file.with_name("b"))
            locks = _has_locks(file)
        free = shutil.disk_usage(path).free / 1e9
    except OSError as error:
        text = f"{path}: {error.strerror}; choose another folder, or mend its permissions"
        yield Line("error", subject, text)
        return
    text = f"{path}: {speed:.0f} MB/s written and synced, {free:.0f} GB free"
    level: Level = "ok" if speed > 20 and free > 5 else "warning"
    yield Line(level, subject, text + ("" if free > 5 else "; make room"))
    if not locks:
        yield Line("warning", subject, f"{path}: no file locks; never start a run twice at a time")
    if abs(skew) > 5:
        text = f"{path}: its clock is {skew:+.0f} s from this machine's; status shows wrong ages"
        yield Line("warning", subject, text)


def _write_speed(file: Path) -> float:
    """Write a file to the disk, and return the speed in MB/s."""
    begin = time.perf_counter()
    with file.open("wb") as out:
        out.write(os.urandom(2**20) * _PROBE)
        out.flush()
        os.fsync(out.fileno())
    return _PROBE * 2**20 / 1e6 / (time.perf_counter() - begin)


def _has_locks(file: Path) -> bool:
    with file.open("r+") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
