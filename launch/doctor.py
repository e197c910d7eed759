"""``dist-train doctor``: what this machine, or a cluster, can do, and what to mend. A line a check."""

from __future__ import annotations

import fcntl
import json
import os
import re
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

import torch
import torch.distributed as dist

from dist_train.config import CacheConfig, Config
from dist_train.distributed.context import usable_cpus
from dist_train.distributed.devices import device_files, driver_cuda, unusable_though_allocated
from dist_train.distributed.rendezvous import interface_towards
from dist_train.errors import UserError
from dist_train.files import write_text
from launch.slurm import jobs
from launch.slurm.profile import Cluster, load_cluster

Line = tuple[str, str, str]  # ok, warning or error; what; what is so, and the remedy
_PROBE = 64 * 2**20  # bytes written and exchanged to measure a speed


def examine(runs: Path, cluster: str | None, minutes: float) -> int:
    """Print every check; exit code 1 where one is an error."""
    profile = load_cluster(cluster) if cluster else None
    checks: list[Callable[[], Iterator[Line]]] = [
        software,
        accelerators,
        processors,
        network,
        lambda: folder("runs", runs),
        lambda: folder("cache", CacheConfig().dir.expanduser()),
        slurm,
    ]
    if profile:
        checks.append(lambda: nodes(runs, profile, minutes))
    worst = 0
    for check in checks:
        for level, what, text in check():
            worst = max(worst, ("ok", "warning", "error").index(level))
            print(f"{level:8} {what:12} {text}", flush=True)
    return 1 if worst == 2 else 0


def software() -> Iterator[Line]:
    import platform

    yield "ok", "python", platform.python_version()
    built = (torch.version.cuda or "").split(".")[0]
    yield "ok", "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    wheels = {d.metadata["Name"]: d.version for d in distributions() if "nvidia-dali" in (d.metadata["Name"] or "")}
    real = {name: version for name, version in wheels.items() if re.search(r"cuda\d+$", name)}
    named = ", ".join(f"{name} {version}" for name, version in real.items())
    if not real:
        yield "error", "dali", "no wheel; pip install -e '.[cuda13]', or '.[cuda12]' for a driver of CUDA 12"
    elif len(real) > 1:
        yield "error", "dali", f"{named} lie in one folder; pip uninstall both, and install that of torch's CUDA again"
    elif built and built not in named.partition("cuda")[2][:2]:
        yield "error", "dali", f"{named} beside torch for CUDA {built}; pip install -e '.[cuda{built}]' in a new folder"
    else:
        yield "ok", "dali", named


def accelerators() -> Iterator[Line]:
    driver = driver_cuda()
    if driver is not None:
        level, fits = ("ok", f"the extra cuda{min(driver[0], 13)} fits") if driver[0] >= 12 else ("warning", "too old")
        yield level, "driver", f"takes CUDA {driver[0]}.{driver[1]}; {fits}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield "ok", "gpu", f"{index}: {facts.name}, {facts.total_memory / 2**30:.0f} GiB"
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield "warning", "bf16", "not in hardware; set the three precisions to fp16"
        if not dist.is_nccl_available():
            yield "error", "nccl", "this torch has none; install torch from PyPI"
        return
    if fault := unusable_though_allocated():
        yield "error", "gpu", fault
        return
    hidden = " (CUDA_VISIBLE_DEVICES hides this machine's)" if device_files() and driver is not None else ""
    yield "warning", "gpu", f"none here{hidden}; everything runs on the CPU"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    if not re.search(r"\b(amx_bf16|avx512_bf16)\b", flags):
        yield "warning", "bf16", "this CPU emulates it; set the three precisions to fp32, as demo does"


def processors() -> Iterator[Line]:
    usable, there = usable_cpus(), os.cpu_count() or 1
    asked = os.environ.get("SLURM_CPUS_PER_TASK", "")
    text = f"{usable} of {there} usable"
    if asked.isdigit() and usable < int(asked):
        yield "error", "cpus", f"{text}, {asked} asked for; srun does not take them over: --cpus-per-task={asked}"
    elif usable == 1 and there > 1:
        yield "warning", "cpus", f"{text}: decoding will be slow; ask for more CPUs a task, or check taskset"
    else:
        yield "ok", "cpus", text
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < 4096:
        yield "warning", "files", f"{files} may be open at a time; ImageNet has about 1,200 shards: ulimit -n 8192"


def network() -> Iterator[Line]:
    host = socket.gethostname()
    try:
        address = socket.gethostbyname(host)
    except OSError:
        yield "warning", "host name", f"{host} has no address; ranks find each other by interface, torchrun may not"
        address = "127.0.0.1"
    local = address.startswith("127.")
    under = interface_towards(address)
    text = f"{host} is {address}" + (f" on {under}" if under else "")
    yield (
        "ok",
        "network",
        text + (", a loopback address: set --rdzv-endpoint to another name under torchrun" if local else ""),
    )
    try:
        with socket.socket() as server:
            server.bind(("", 0))
            server.listen(1)
            socket.create_connection((address, server.getsockname()[1]), timeout=5).close()
        yield "ok", "ports", "a free port can be taken and reached"
    except OSError as error:
        yield "error", "ports", f"cannot reach a port of this machine at {address}: {error}; look at its firewall"


def folder(what: str, path: Path) -> Iterator[Line]:
    """Speed, locks, rename and clock of a folder."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path, prefix=".doctor-") as temporary:
            file = Path(temporary) / "a"
            began = time.perf_counter()
            with file.open("wb") as out:
                out.write(os.urandom(2**20) * (_PROBE // 2**20))
                out.flush()
                os.fsync(out.fileno())
            speed = _PROBE / 1e6 / (time.perf_counter() - began)
            skew = file.stat().st_mtime - time.time()
            os.replace(file, file.with_name("b"))
            locks = True
            with file.with_name("b").open("r+") as out:
                try:
                    fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    locks = False
        free = shutil.disk_usage(path).free / 1e9
    except OSError as error:
        yield "error", what, f"{path}: {error.strerror}; choose another folder, or mend its permissions"
        return
    text = f"{path}: {speed:.0f} MB/s written and synced, {free:.0f} GB free"
    yield "ok" if speed > 20 and free > 5 else "warning", what, text + ("" if free > 5 else "; make room")
    if not locks:
        yield "warning", what, f"{path}: no file locks; never start a run twice at a time"
    if abs(skew) > 5:
        yield "warning", what, f"{path}: its clock is {skew:+.0f} s from this machine's; status shows wrong ages"


def slurm() -> Iterator[Line]:
    if shutil.which("sbatch") is None:
        yield "warning", "slurm", "no sbatch here; dist-train launch local and torchrun work without"
        return
    try:
        version = " ".join(jobs.ask(["sinfo", "-V"]))
        told = "\n".join(jobs.ask(["scontrol", "show", "config"]))
    except jobs.NoCluster:  # not an error here
        yield "warning", "slurm", "programs without a configuration of a cluster; launch local works without one"
        return
    except jobs.NoAnswer as error:
        yield "error", "slurm", f"{error}; ask its administrators"
        return
    settings = dict(re.findall(r"^(\w+)\s*= (.*?)\s*$", told, re.MULTILINE))
    yield "ok", "slurm", f"{version}, cluster {settings.get('ClusterName', '?')}"
    try:
        jobs.ask(["sacct", "-n", "-X", "-S", "now"])
        yield "ok", "sacct", "answers"
    except jobs.NoAnswer as error:
        yield "warning", "sacct", f"{error}: status then knows queued and running jobs only"
    if settings.get("JobRequeue") == "0":
        yield "ok", "requeue", "off by default here (JobRequeue=0); our jobs ask for it with --requeue"
    mode, how = (
        settings.get("PreemptMode", ""),
        settings.get("PreemptParameters", "") + settings.get("SlurmctldParameters", ""),
    )
    if "OFF" in mode:
        yield "ok", "preemption", "off: only time limits and failures end a job"
    elif "send_user_signal" in how:
        yield "ok", "preemption", f"{mode}; jobs get USR2 first"
    else:
        yield "ok", "preemption", f"{mode}; jobs get TERM, and KillWait={settings.get('KillWait', '?')} to save"
    if "affinity" not in settings.get("TaskPlugin", "") and "cgroup" not in settings.get("TaskPlugin", ""):
        yield "warning", "task plugin", f"{settings.get('TaskPlugin')}: tasks are not bound to the CPUs they asked for"


def nodes(runs: Path, cluster: Cluster, minutes: float) -> Iterator[Line]:
    """A short job of the profile on two nodes: do the ranks meet, and how fast do they exchange?"""
    from launch.slurm.profile import resources
    from launch.slurm.submit import Job, Start, submit

    wanted = resources(cluster, "pretrain", {"nodes": min(2, cluster.nodes or 2), "minutes": 5})
    runs.mkdir(parents=True, exist_ok=True)
    here = Path(tempfile.mkdtemp(prefix=".doctor-", dir=runs.absolute()))
    config = Config(name=here.name, runs=here.parent)
    try:
        ((_, job),) = submit(config, cluster, [Job("doctor", wanted, [Start(["doctor", "--inside", str(here)])])])
    except UserError as error:
        shutil.rmtree(here)
        yield "error", "job", str(error)
        return
    end = time.monotonic() + 60 * minutes
    state = None
    while time.monotonic() < end and not (here / "nodes.json").is_file():
        with suppress(jobs.NoAnswer):
            state = jobs.states([job]).get(job, state)
        if state and not state.active:
            break
        time.sleep(1)
    if (here / "nodes.json").is_file():
        yield from json.loads((here / "nodes.json").read_text())
        while time.monotonic() < end and _runs(here):
            time.sleep(1)
        shutil.rmtree(here, ignore_errors=True)
        return
    jobs.cancel_ids([job])
    found = f"{state.state} {state.reason}".strip() if state else "unknown"
    log = next(jobs.folder(here).glob("*_log.out"), None)
    if log is None:  # it never started
        shutil.rmtree(here, ignore_errors=True)
    told = f"; its log is {log}" if log else ""
    yield "error", "job", f"job {job} did not report within {minutes:g} min (state {found}){told}"


def _runs(run: Path) -> bool:
    try:
        return bool(jobs.active(run))
    except jobs.NoAnswer:
        return True


def inside(folder: Path) -> int:
    """What that job runs on every rank."""
    from dist_train.distributed import context as contexts

    with contexts.start(timeout=120, folder=folder / "launch") as context:
        where, *warnings = contexts.placement(context)
        lines: list[Line] = [("ok", "ranks", where), *(("warning", "ranks", text) for text in warnings)]
        data = torch.ones(_PROBE // 4, device=context.device)
        context.sum(data[:1])
        began = time.perf_counter()
        for _ in range(3):
            context.sum(data)
        if context.device.type == "cuda":
            torch.cuda.synchronize()
        speed = 3 * _PROBE / 1e9 / (time.perf_counter() - began)
        how = "NCCL" if context.device.type == "cuda" else "gloo"
        lines.append(("ok", "all-reduce", f"{speed:.2f} GB/s over {how} between {context.world} rank(s)"))
        context.sum(torch.zeros(1))  # all leave the exchange together: their clocks can be compared
        clocks = context.gather(time.time())
        spread = max(clocks) - min(clocks)
        lines.append(("ok" if spread < 5 else "warning", "clocks", f"{spread:.2f} s apart between the ranks"))
        if context.main:
            write_text(folder / "nodes.json", json.dumps(lines))
        context.barrier("doctor")
    return 0
