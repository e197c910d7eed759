"""Simulate a start on many nodes: when the first step comes, what a restart costs, how much of the time is training.

    python tools/plan_start.py --batch 256 --step-ms 102.4         # 1, 8, 32 and 128 nodes
    python tools/plan_start.py --measure                           # requests/s of a real TCPStore on this machine

A discrete simulation, in events, of what the code does; the same seed gives the same numbers. The options of
tools/plan_scale.py about the step and the network apply here too. In order:

* Ranks come --launch-s after the start and up to --spread-s later, each node at a time of its own.
* They meet (dist_train/distributed/rendezvous.py): every request to rank 0's store waits its turn. --polling is what
  the code did before this simulation: each rank asked for each other rank, ten times a second.
* gloo connects all ranks with all, NCCL its rings (--mesh-s, --nccl-s: for 1024 ranks, in proportion to the ranks),
  and names and GPUs are gathered: a ring of world - 1 hops, twice.
* Each node reads and opens the index (--open-s), with two barriers through the store.
* Node caches fill from one store (dist_train/data/shards/cache.py): whole shards in the order of their use,
  --downloads at a time, and one more for each rank that waits for its own. The nodes share the store fairly, each
  within its own limit. A global batch waits until all nodes have the shards of all its images, which is slightly
  pessimistic: a rank waits only for its own.
* All nodes take each step together: the slowest sets the pace.

For a restart, a node is lost. Either it got a signal before (USR2, TERM) and all ranks saved; or its silence is
noticed after monitor.rank_timeout, and the work since the last checkpoint is done again. The cache of the node that
replaces it is empty.

The simulation leaves out evaluation, the writes of checkpoints (they run beside the steps), retries, and the
scheduler's queue.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import multiprocessing
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import numpy as np
import plan_scale
from plan_scale import GB, above, count

CONNECT = 5  # requests: the client's own two, a check, a get of two (rendezvous._connect)
BARRIER = 2  # add, wait (context.barrier)
POLL = 0.1  # seconds between the rounds of the ranks that polled


class Clock:
    """Run events in the order of their times."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()  # events of the same time run in the order in which they were added

    def at(self, when: float, act: Callable[[], None]) -> None:
        """Add an event."""
        heapq.heappush(self._events, (when, next(self._numbers), act))

    def run(self) -> None:
        """Run all events, and those that they add."""
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


class Server:
    """Simulate rank 0's store: one thread that answers ``rate`` requests a second, first come, first served."""

    def __init__(self, clock: Clock, rate: float) -> None:
        self.clock, self.rate, self.requests, self._free = clock, rate, 0, 0.0

    def ask(self, requests: int, then: Callable[[], None]) -> None:
        """Queue requests, and call ``then`` when they are answered."""
        self.requests += requests
        self._free = max(self._free, self.clock.now) + requests / self.rate
        self.clock.at(self._free, then)


class Meeting:
    """Simulate ``rendezvous.meet`` of ``world`` ranks: what each asks of rank 0's store, and when each is through.

    Attributes:
        through: seconds at which each rank is through.
    """

    def __init__(self, clock: Clock, server: Server, world: int, polling: bool) -> None:
        self.clock, self.server, self.world, self.polling = clock, server, world, polling
        self.through = [0.0] * world
        self._arrived = self._met = 0

    def start(self, rank: int, when: float) -> None:
        """Let a rank start at a time: it connects, sets its record, and adds itself where arrivals are counted."""
        requests = CONNECT + (1 if self.polling else 2)
        self.clock.at(when, partial(self.server.ask, requests, partial(self._arrive, rank)))

    def _arrive(self, rank: int) -> None:
        self._arrived += 1
        if self.polling:
            self._poll(rank, self.world)
        elif self._arrived == self.world:
            for other in range(self.world):  # all waits are answered
                self.server.ask(1, partial(self._meet, other))

    def _poll(self, rank: int, missing: int) -> None:
        self.server.ask(missing, partial(self._look, rank))

    def _look(self, rank: int) -> None:
        if missing := self.world - self._arrived:
            self.clock.at(self.clock.now + POLL, partial(self._poll, rank, missing))
        else:
            self._meet(rank)

    def _meet(self, rank: int) -> None:
        self.server.ask(1, self._count)  # add

    def _count(self) -> None:
        self._met += 1
        if self._met == self.world:
            for other in range(self.world):
                self.server.ask(1, partial(self._leave, other))

    def _leave(self, rank: int) -> None:
        self.through[rank] = self.clock.now


def meet(arrivals: Sequence[float], rate: float, polling: bool = False) -> tuple[list[float], int]:
    """Simulate ``rendezvous.meet``; return when each rank is through, and the number of requests."""
    clock = Clock()
    server = Server(clock, rate)
    meeting = Meeting(clock, server, len(arrivals), polling)
    for rank, when in enumerate(arrivals):
        meeting.start(rank, when)
    clock.run()
    return meeting.through, server.requests


def fair(total: float, limits: Sequence[float]) -> list[float]:
    """Share ``total`` as rates, none above its limit; what is not used goes to the others (max-min fairness)."""
    rates, left = [0.0] * len(limits), total
    for place, number in enumerate(sorted(range(len(limits)), key=limits.__getitem__)):
        rates[number] = min(limits[number], left / (len(limits) - place))
        left -= rates[number] if left < math.inf else 0
    return rates


Curve = list[tuple[float, float]]
"""Points (seconds, bytes that are there)."""


def fill(starts: Sequence[float], amounts: Sequence[float], limits: Sequence[float], total: float) -> list[Curve]:
    """Return how each node's cache fills, at rates that change only when a node begins or has everything.

    Args:
        starts, amounts, limits: for each node the second at which it begins, the bytes that it lacks, its bytes/s.
        total: bytes/s of the store.
    """
    done = [0.0] * len(starts)
    curves: list[Curve] = [[(start, 0.0)] for start in starts]
    waiting = {node for node, amount in enumerate(amounts) if amount > 0}
    now = min(starts)
    while waiting:
        active = sorted(node for node in waiting if starts[node] <= now)
        rates = fair(total, [limits[node] for node in active])
        ends = [now + (amounts[node] - done[node]) / rate for node, rate in zip(active, rates, strict=True)]
        then = min([*ends, *(starts[node] for node in waiting if starts[node] > now)])
        for node, rate, end in zip(active, rates, ends, strict=True):
            done[node] = amounts[node] if end <= then else done[node] + rate * (then - now)
            curves[node].append((then, done[node]))
            if end <= then:
                waiting.remove(node)
        now = then
    return curves


def reached(curve: Curve, amount: float) -> float:
    """Return when ``amount`` bytes are there."""
    place = bisect_left(curve, amount, key=lambda point: point[1])
    if place == 0:
        return curve[0][0]
    (before, low), (after, high) = curve[place - 1], curve[min(place, len(curve) - 1)]
    return after if high <= low else before + (after - before) * min(1.0, (amount - low) / (high - low))


@dataclass(frozen=True)
class Start:
    """Hold the times of a start, in seconds since the job began, at the last rank or node.

    Attributes:
        came, met, joined, opened: when ranks have come, have met, have joined gloo and NCCL, have opened the index.
        fed: when all nodes have the shards of the first global batch.
        first_step: when the first step is done.
        filled: when the last node has all shards.
        curves: how each node's cache fills.
        requests: number of requests to rank 0's store.
    """

    came: float
    met: float
    joined: float
    opened: float
    fed: float
    first_step: float
    filled: float
    curves: list[Curve]
    requests: int


def lacking(step: int, images: int, args: argparse.Namespace) -> float:
    """Return the share of the shards that global batches 0 to ``step`` use: the expectation, or whole blocks."""
    if args.block_shards:
        blocks = math.floor(
            (step * images % args.dataset + images - 1) * args.shards / args.block_shards / args.dataset
        )
        past = step * images // args.dataset  # a later epoch has other blocks, but by then all are there
        return 1.0 if past else min(1.0, (blocks + 1) * args.block_shards / args.shards)
    return 1 - (1 - 1 / args.shards) ** ((step + 1) * images)


def start(nodes: int, args: argparse.Namespace, cold: Sequence[int] | None = None) -> Start:
    """Simulate one start.

    Args:
        cold: nodes whose cache is empty; all by default.
    """
    random, per = np.random.RandomState(args.seed), args.gpus_per_node
    arrivals = np.repeat(args.launch_s + args.spread_s * random.random_sample(nodes), per).tolist()
    world = nodes * per
    times, requests = meet(arrivals, args.store_rate, args.polling)
    met = max(times)
    hops = 2 * (world - 1) * args.hop_us / 1e6
    joined = met + (args.mesh_s + args.nccl_s) * world / 1024 + hops
    read = args.index_mb * 1e6 / min(args.storage_node * GB, args.storage_total * GB / nodes)
    opened = joined + read + args.open_s + 2 * BARRIER * world / args.store_rate
    every = args.dataset * args.image_kb * 1e3
    empty = set(range(nodes) if cold is None else cold)
    shard = 1 / args.connection + 1 / args.hash  # seconds a GB: a download is read, then hashed
    streams = (args.downloads + per) / shard if shard else math.inf
    limits = [min(args.storage_node, args.disk, streams) * GB] * nodes
    if args.slow_link:
        limits[-1] = min(limits[-1], args.slow_link * GB)
    curves = fill(
        [opened] * nodes, [every if n in empty else 0.0 for n in range(nodes)], limits, args.storage_total * GB
    )
    need = lacking(0, world * args.batch, args) * every
    fed = max(reached(curve, need) for curve in curves)
    filled = max(curve[-1][0] for curve in curves)
    step = step_seconds(nodes, args)[1] * (1 + args.slow_node / 100)
    return Start(max(arrivals), met, joined, opened, fed, fed + step, filled, curves, requests)


def step_seconds(nodes: int, args: argparse.Namespace) -> tuple[float, float]:
    """Return the seconds that a step computes, and the same with the part of the all-reduce that is not hidden.

    As ``plan_scale`` has it, without storage.
    """
    row = plan_scale.plan(nodes * args.gpus_per_node, args.step)
    return row.compute, row.compute + row.exposed


def train(nodes: int, args: argparse.Namespace, begun: Start, steps: int) -> float:
    """Return when the last step is done: a step waits for all nodes' shards and lasts as long as on the slowest."""
    random, images = np.random.RandomState(args.seed + 1), nodes * args.gpus_per_node * args.batch
    compute, whole = step_seconds(nodes, args)
    pace = np.ones(nodes)
    pace[-1] += args.slow_node / 100
    every, now = args.dataset * args.image_kb * 1e3, begun.fed
    for step in range(steps):
        if now < begun.filled:
            need = lacking(step, images, args) * every
            now = max(now, *(reached(curve, need) for curve in begun.curves))
        jitter = args.jitter / 100 * random.standard_normal(nodes)
        now += compute * float((pace + np.maximum(jitter, -0.5)).max()) + whole - compute
    return now


def restart(nodes: int, args: argparse.Namespace, steps: int, signalled: bool) -> float:
    """Return the seconds of training that the loss of a node costs; the cache of its replacement is empty.

    Args:
        signalled: the node got a signal before, and all ranks saved.
    """
    again = start(nodes, args, cold=[nodes - 1]).first_step
    step = step_seconds(nodes, args)[1]
    lost = step + args.save_s if signalled else args.rank_timeout + min(args.checkpoint_every, steps) / 2 * step
    return lost + args.requeue_s + again


def table(nodes: Sequence[int], args: argparse.Namespace) -> None:
    """Print a row for each number of nodes.

    The parts of the start come first, in seconds at the last rank, then the times at which things are reached.
    Efficiency is relative to the given step alone, without a start or an exchange.
    """
    print("| nodes | requests | met, s | joined, s | index, s | first shards, s | first step at, s | all shards at, s "
          "| steps | end at | efficiency | killed, s | signalled, s |")  # fmt: skip
    print("|---:|" + "---:|" * 12)
    for number in nodes:
        begun, world = start(number, args), number * args.gpus_per_node
        steps = max(1, round(args.epochs * args.dataset / (world * args.batch)))
        end = train(number, args, begun, steps)
        phases = (
            begun.met - begun.came,
            begun.joined - begun.met,
            begun.opened - begun.joined,
            begun.fed - begun.opened,
        )
        killed, signalled = (restart(number, args, steps, signalled) for signalled in (False, True))
        each = " | ".join(f"{phase:.1f}" for phase in phases)
        print(
            f"| {number} | {begun.requests:,} | {each} | {begun.first_step:.0f} "
            f"| {begun.filled:.0f} | {steps:,} | {plan_scale.duration(end)} | {steps * args.step_ms / 1e3 / end:.1%} "
            f"| {killed:.0f} | {signalled:.0f} |"
        )


# --measure: requests of a real store


def ask(port: int, begin: object, requests: int) -> None:
    """Run one client of ``measure``."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, None, False, timedelta(seconds=60), wait_for_workers=False)
    begin.wait()  # type: ignore[attr-defined]
    for _ in range(requests):
        store.check(["key"])


def measure(clients: int, requests: int = 2000) -> tuple[float, float]:
    """Measure the requests a second that a TCPStore of this process answers to other processes.

    Returns:
        Requests per second of wall time, and per second of processor time: what the store would answer with a core of
        its own, as nothing else runs in this process meanwhile.
    """
    import torch.distributed as dist

    host = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    host.set("key", "value")
    spawn = multiprocessing.get_context("spawn")
    begin = spawn.Barrier(clients + 1)
    running = [spawn.Process(target=ask, args=(host.port, begin, requests)) for _ in range(clients)]
    for process in running:
        process.start()
    begin.wait()
    began, busy = time.perf_counter(), time.process_time()
    for process in running:
        process.join()
    answered = clients * requests
    return answered / (time.perf_counter() - began), answered / (time.process_time() - busy)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of the start; all others go to ``plan_scale.parse``."""
    parser = plan_scale.Parser(prog="plan_start.py", description=__doc__, allow_abbrev=False,
                               formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_start_options(parser)
    add_cache_options(parser)
    add_trouble_options(parser)
    args, others = parser.parse_known_args(argv)
    if args.measure:
        return args
    args.step = plan_scale.parse(["--gpus", "1", *others])
    if args.step.check or args.step.global_batch or args.step.gpus != [1]:
        parser.error("--check, --gpus and --global-batch are plan_scale.py's; here --nodes says how many, and each GPU "
                     "has the --batch")  # fmt: skip
    for name in ("batch", "step_ms", "gpus_per_node", "dataset", "epochs", "image_kb", "storage_node", "storage_total"):
        setattr(args, name, getattr(args.step, name))
    if not 0 <= args.seed < 2**32 - 1:
        parser.error(f"--seed must be from 0 to {2**32 - 2}, got {args.seed}")
    if not 0 <= args.block_shards <= args.shards:
        parser.error(f"--block-shards must be from 0 to --shards {args.shards}, got {args.block_shards}")
    return args


limit, least = above(0, infinite=True), above(0, allow=True)


def add_start_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the start."""
    add = parser.add_argument_group("the start").add_argument
    add("--nodes", type=count, nargs="+", default=[1, 8, 32, 128], help="%(default)s")
    add("--launch-s", type=least, default=20, help="until the first rank has its imports; %(default)s, an assumption")
    add("--spread-s", type=least, default=20, help="from then until the last rank has; %(default)s, an assumption")
    add("--store-rate", type=limit, default=40000, help="requests/s of rank 0's store; %(default)s; --measure gave "
        "48,000 by its processor time on an AMD EPYC")  # fmt: skip
    add("--polling", action="store_true", help="each rank asks for each other rank, as the code did before")
    add("--mesh-s", type=least, default=9, help="gloo's connections among 1024 ranks; %(default)s: half of the 18 s "
        "that Meta saw among 2048 (pytorch/gloo, pull request 408)")  # fmt: skip
    add("--nccl-s", type=least, default=10, help="NCCL's communicator of 1024 ranks; %(default)s, an assumption "
        "(NVIDIA/nccl issue 1156: 150 s among several thousand)")  # fmt: skip
    add("--hop-us", type=least, default=50, help="µs of a gloo message between hosts; %(default)s, an assumption "
        "(docs/results/scale.md: 124 to 159 on a loaded machine's loopback)")  # fmt: skip
    add("--index-mb", type=least, default=56, help="MB of the table of samples; %(default)s: ImageNet's, 44 bytes a "
        "row")  # fmt: skip
    add("--open-s", type=least, default=0.5, help="to open the index on all ranks of a node; %(default)s, measured by "
        "tools/bench_index.py, rounded up")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the nodes' times; %(default)s")


def add_cache_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the nodes' caches."""
    add = parser.add_argument_group("filling the caches; with --storage-total and --storage-node").add_argument
    add("--shards", type=count, default=1100, help="%(default)s, ImageNet's")
    add("--block-shards", type=int, default=0, help="data.block_shards; %(default)s: no blocks")
    add("--downloads", type=count, default=4, help="cache.downloads; %(default)s")
    add("--connection", type=limit, default=math.inf, help="GB/s of one download; no limit by default. Object stores "
        "give some 0.09 a request (Amazon's performance guidelines for S3)")  # fmt: skip
    add("--hash", type=limit, default=0.9, help="GB/s of sha256 in one thread; %(default)s, measured on an AMD EPYC")
    add("--disk", type=limit, default=5, help="GB/s that a node's disk writes; %(default)s, an assumption")


def add_trouble_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of slow and lost nodes, and --measure."""
    add = parser.add_argument_group("what goes wrong").add_argument
    add("--slow-node", type=least, default=0, help="%% by which one node computes slower; %(default)s")
    add("--slow-link", type=least, default=0, help="GB/s that one node reads at most; %(default)s: like the others")
    add("--jitter", type=least, default=1, help="%% of a step, standard deviation of a node's time; %(default)s, an "
        "assumption")  # fmt: skip
    add("--checkpoint-every", type=count, default=1000, help="pretrain.checkpoint_every, steps; %(default)s")
    add("--rank-timeout", type=least, default=60, help="monitor.rank_timeout, s; %(default)s")
    add("--save-s", type=least, default=5, help="to save after a signal; %(default)s, an assumption")
    add("--requeue-s", type=least, default=60, help="until the scheduler has another node; %(default)s, an assumption")
    add("--measure", type=count, nargs="?", const=4, metavar="CLIENTS", help="measure the requests/s of a store here; "
        "no simulation")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, or with --measure the store's rate."""
    args = parse(argv)
    if args.measure:
        here, alone = measure(args.measure)
        print(f"{args.measure} clients: {here:,.0f} requests/s; {alone:,.0f} by the store's processor time")
    else:
        table(args.nodes, args)


if __name__ == "__main__":
    main(sys.argv[1:])
