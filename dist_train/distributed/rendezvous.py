"""How the ranks meet.

torchrun says where. Under SLURM and submitit's local executor, rank 0 takes a port that the system gives it and leaves
its address in the run's folder, which all nodes see: no port is guessed, none is used twice, and a requeued job gets a
new port.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous as torch_rendezvous

from dist_train.errors import LostError, UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Set by srun for the tasks of a step, and only there: a shell inside a job is a lone process.
_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")
_SUBMITIT = ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID")
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>: an interface's IPv4 address


@dataclass(frozen=True)
class Place:
    """Say what the launcher's environment tells a process about itself.

    Attributes:
        rank, world: its number, and how many processes there are.
        local_rank, local_world: the same on this node.
        launcher: ``torchrun``, ``slurm`` or ``submitit``; "" for a lone process.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str = ""


def read_environment(env: Mapping[str, str]) -> Place:
    """Return this process's place: by torchrun's variables where they are all set, else by srun's, else by those of
    submitit's local executor; without any of them it is a lone process.

    Raises:
        UserError: torchrun's variables are set in part, or contradict each other.
    """
    present = [name for name in _TORCHRUN if name in env]
    try:
        if "RANK" in env or "WORLD_SIZE" in env:
            missing = [name for name in _TORCHRUN if name not in env]
            if missing:
                raise UserError(
                    f"environment: {', '.join(present)} set but {', '.join(missing)} not; start with torchrun, "
                    f"or unset them for a lone process"
                )
            rank, world, local_rank, local_world = (int(env[name]) for name in _TORCHRUN[:4])
            place = Place(rank, world, local_rank, local_world, "torchrun")
        elif all(name in env for name in _SLURM):
            tasks = _tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]
            rank, world, local_rank = (int(env[name]) for name in _SLURM[:3])
            place = Place(rank, world, local_rank, tasks, "slurm")
        elif all(name in env for name in _SUBMITIT):
            rank, world, local_rank = (int(env[name]) for name in _SUBMITIT)
            place = Place(rank, world, local_rank, world, "submitit")
        else:
            return Place()
    except (ValueError, IndexError):
        raise UserError("environment: the ranks' variables (RANK, SLURM_PROCID, ...) must be whole numbers") from None
    if not (0 <= place.rank < place.world and 0 <= place.local_rank < place.local_world <= place.world):
        raise UserError(
            f"environment: rank {place.rank} of {place.world}, local {place.local_rank} of {place.local_world} "
            f"contradict each other"
        )
    return place


def _tasks_per_node(text: str) -> list[int]:
    """Parse SLURM's "2(x3),1" to [2, 2, 2, 1]."""
    tasks = []
    for group in text.split(","):
        count, _, times = group.rstrip(")").partition("(x")
        tasks += [int(count)] * int(times or 1)
    return tasks


def meet(place: Place, env: Mapping[str, str], folder: Path | None, timeout: float) -> tuple[Any, tuple[str, int]]:
    """Wait until all ranks have come, and return their store and its address.

    Args:
        folder: where rank 0 leaves its address, unless torchrun gives an address.
        timeout: seconds.

    Raises:
        LostError: a rank did not come, or rank 0 left no address.
        UserError: rank 0 is there but cannot be reached.
    """
    _allow_files()
    if place.launcher == "torchrun":
        address = env["MASTER_ADDR"], int(env["MASTER_PORT"])
        try:
            limit = timedelta(seconds=timeout)
            store, _, _ = next(torch_rendezvous("env://", place.rank, place.world, timeout=limit))
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise LostError(
                f"rank {place.rank}: the {place.world} ranks did not meet at {address[0]}:{address[1]} within "
                f"{timeout:g} s (monitor.start_timeout): {reason}"
            ) from None
    else:
        if folder is None:
            raise UserError(f"{place.world} ranks of {place.launcher}: this command runs as one process only")
        end = time.monotonic() + timeout
        path = folder / f"meet-{_attempt(env)}.json"
        store, address = _host(path) if place.rank == 0 else _join(path, place, end)
        _wait_for_all(store, place, end, timeout)
        if place.rank == 0:
            path.unlink(missing_ok=True)
    if place.world > place.local_world and (name := interface_towards(address[0])):
        # gloo takes the address of the host's own name, which on Debian is a loopback address.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return store, address


def _attempt(env: Mapping[str, str]) -> str:
    """Return a name for this start of this job."""
    if "SLURM_JOB_ID" in env:
        return "-".join(env.get(n, "0") for n in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID"))
    return env.get("SUBMITIT_LOCAL_JOB_ID", "0")


def new_store(host: str, port: int, world: int | None, master: bool, timeout: timedelta | None = None) -> Any:
    """Open a store of torch's, or a connection to it, without waiting for the other ranks."""
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    # Documented, but its stubs do not export it by name.
    return dist.TCPStore(host, port, world, master, wait_for_workers=False, **options)  # type: ignore[attr-defined]


def _host(path: Path) -> tuple[Any, tuple[str, int]]:
    """Open the store of rank 0, leave its addresses in ``path``, and return it with the first address."""
    store = new_store("127.0.0.1", 0, None, master=True)
    token = secrets.token_hex(8)
    store.set("token", token)
    # Loopback addresses last: they lead to a wrong place on every other node.
    addresses = sorted((a for _, a in _interfaces()), key=lambda a: a.startswith("127."))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    note = {"host": socket.gethostname(), "addresses": addresses, "port": store.port, "token": token}
    temporary.write_text(json.dumps(note))
    os.replace(temporary, path)
    return store, (addresses[0] if addresses else "127.0.0.1", store.port)


def _join(path: Path, place: Place, end: float) -> tuple[Any, tuple[str, int]]:
    """Connect to the store of rank 0 by the addresses in ``path``, and return it with the address that answered.

    Raises:
        LostError: rank 0 left no address before ``end``.
        UserError: it answers at none of them.
    """
    error: type[UserError] = LostError  # rank 0 may come at the next start
    problem = f"rank 0 left no address in {path.parent} (is the folder shared by all nodes?)"
    while time.monotonic() < end:
        os.listdir(path.parent) if path.parent.is_dir() else None  # makes a network file system look again
        try:
            note = json.loads(path.read_text())
        except (OSError, ValueError):
            time.sleep(0.2)
            continue
        for address in note["addresses"]:
            store = _connect(address, note["port"], note["token"])
            if store is not None:
                return store, (address, note["port"])
        tried, error = ", ".join(note["addresses"]), UserError
        problem = (
            f"rank 0 on {note['host']} answers at none of {tried}, port {note['port']} (a firewall between nodes?)"
        )
        time.sleep(1)
    raise error(f"rank {place.rank} on {socket.gethostname()}: {problem}; dist-train doctor looks closer")


def _connect(address: str, port: int, token: str) -> Any:
    """Return the store at this address, or None where there is none or it is another run's."""
    try:
        socket.create_connection((address, port), timeout=3).close()
        store = new_store(address, port, None, master=False, timeout=timedelta(seconds=10))
        return store if store.check(["token"]) and store.get("token").decode() == token else None
    except (OSError, RuntimeError):
        return None


def _wait_for_all(store: Any, place: Place, end: float, timeout: float) -> None:
    """Wait until all ranks have come, with at most seven requests a rank. If each rank asked for each other, again and
    again, rank 0 would have to answer millions of requests for a thousand ranks (``tools/plan_start.py``)."""
    store.set(f"here/{place.rank}", socket.gethostname())
    try:
        wait_for_each_other(store, "come", place.world, timedelta(seconds=max(1.0, end - time.monotonic())))
    except RuntimeError:
        absent = (rank for rank in range(place.world) if not store.check([f"here/{rank}"]))
        raise LostError(
            f"rank {place.rank}: of {place.world} ranks these did not come within {timeout:g} s "
            f"(monitor.start_timeout): {', '.join(map(str, islice(absent, 20)))}; their logs say why"
        ) from None
    store.set_timeout(timedelta(seconds=timeout))  # for later requests; joining used a shorter one
    # Rank 0 holds the store and must not leave before every rank knows that all have come.
    wait_for_each_other(store, "seen", place.world, timedelta(seconds=max(5.0, end - time.monotonic())))


def wait_for_each_other(store: Any, name: str, world: int, timeout: timedelta) -> None:
    """Wait until all ranks have called it with this name, which may be used again. It takes two requests a rank, and
    one more from the last.

    Raises:
        RuntimeError: they did not all come in time.
    """
    count = store.add(name, 1)
    turn = (count - 1) // world
    if count % world == 0:
        store.set(f"{name}/{turn}", "open")
    store.wait([f"{name}/{turn}"], timeout)


def _allow_files() -> None:
    """Allow this process as many open files as the system permits. The usual 1024 are too few for the connections of a
    thousand ranks: gloo has one to each, and rank 0's store two from each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # some systems have a lower limit than they name
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def interface_towards(host: str) -> str | None:
    """Return the network interface that leads to ``host`` ("eth0"); None where that is unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    return next((name for name, address in _interfaces() if address == own), None)


def _interfaces() -> list[tuple[str, str]]:
    """Return (name, IPv4 address) of every interface that has an address."""
    interfaces = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            interfaces.append((name, socket.inet_ntoa(answer[20:24])))
    return interfaces
