"""Plan scale on paper: how fast 1, 2, 4 ... 1024 GPUs would train, from the measured step of one GPU.

    python tools/plan_scale.py --batch 256 --step-ms 102.4              # weak scaling: 256 images a GPU
    python tools/plan_scale.py --batch 256 --step-ms 102.4 --global-batch 1024    # strong scaling
    python tools/plan_scale.py --check          # the all-reduce formula against gloo on this machine

Measure the step (forward, backward, update; no data loading, no communication) on one worker.
The model, whose constants are all options:

* all-reduce: a ring, 2 (n-1)/n bytes/bandwidth + 2 (n-1) latency (Patarasuk & Yuan 2009, Bandwidth optimal
  all-reduce algorithms). Over several nodes it has three parts: a reduce-scatter within each node, a ring over
  the nodes for each GPU's part (bytes / GPUs per node), and an all-gather within each node.
* overlap: DDP starts a bucket's all-reduce once its gradients are there, one bucket after the other, while the
  backward pass goes on; nothing hides the last bucket (Li et al. 2020, PyTorch Distributed, VLDB). Gradients are
  assumed to come evenly over the backward pass.
* data: loading runs beside the step, so the slower of the two sets the pace.
* efficiency: images/s, relative to the number of GPUs times the images/s of the given step.
* bottleneck: decode or storage where the GPUs wait for them, else the longer of compute and all-reduce.

The model leaves out stragglers, the cores and GPU time that the loader and NCCL take from the step, batch norm's
buffers (0.2 MB a step), the start, evaluation and checkpoints: real runs are slower. Over many nodes NCCL changes
from rings to trees, whose latency is lower: all-reduce may then be faster. The model says nothing about accuracy:
large global batches need more epochs or other recipes (Goyal et al. 2017: up to 8,192 without loss).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

MB, GB, MIB = 1e6, 1e9, 2**20
RESNET50 = 4 * 25_557_032  # bytes of fp32 gradients, whose all-reduce --check predicts


@dataclass(frozen=True)
class Link:
    """Hold a rank's bandwidth in bytes/s, and its latency: the seconds until the first byte of a message arrives."""

    bandwidth: float
    latency: float


@dataclass(frozen=True)
class Row:
    """Hold a step on a number of GPUs.

    Attributes:
        images: images of a step, over all GPUs.
        step, compute, all_reduce: seconds.
        exposed: seconds of ``all_reduce`` that the backward pass does not hide.
        data: bytes/s that all nodes together would need if loading never held them up.
    """

    gpus: int
    nodes: int
    images: int
    step: float
    compute: float
    all_reduce: float
    exposed: float
    efficiency: float
    data: float
    bottleneck: str

    @property
    def rate(self) -> float:
        """Return images/s."""
        return self.images / self.step


def ring(ranks: int, size: float, link: Link) -> float:
    """Return the seconds of a ring all-reduce of ``size`` bytes: 2 (n-1) hops of size/n bytes each.

    The first half of the hops is a reduce-scatter, the second an all-gather.
    """
    return 2 * (ranks - 1) * (size / ranks / link.bandwidth + link.latency)


def all_reduce(gpus: int, per_node: int, size: float, intra: Link, inter: Link) -> float:
    """Return the seconds of an all-reduce of ``size`` bytes over all GPUs: within nodes, then between them."""
    local = min(gpus, per_node)
    return ring(local, size, intra) + ring(gpus // local, size / local, inter)


def buckets(size: float, first: float, cap: float) -> list[float]:
    """Return the sizes of DDP's buckets in the order of the backward pass.

    DDP's own are close to these, as it does not cut tensors in two.
    """
    sizes = [min(first, size)]
    while (rest := size - sum(sizes)) > 1:
        sizes.append(min(cap, rest))
    return sizes


def not_hidden(compute: float, backward: float, sizes: Sequence[float], times: Sequence[float]) -> float:
    """Return the seconds by which the all-reduces outlast the backward pass.

    Args:
        compute: seconds of the step.
        backward: share of the step that is the backward pass.
        sizes, times: bytes of each bucket, and seconds of its all-reduce.
    """
    ready, end = compute * (1 - backward), 0.0
    for size, seconds in zip(sizes, times, strict=True):
        ready += compute * backward * size / sum(sizes)
        end = max(end, ready) + seconds
    return max(0.0, end - compute)


def plan(gpus: int, args: argparse.Namespace) -> Row:
    """Predict the step on ``gpus`` GPUs, from the options of ``parse``."""
    nodes = -(-gpus // args.gpus_per_node)
    images = args.global_batch or args.batch * gpus
    whole, fixed, part = args.step_ms / 1e3, args.fixed_ms / 1e3, images / gpus / args.batch
    # A smaller batch is a shorter step; a larger one is several steps, whose gradients are exchanged once.
    last = fixed + (whole - fixed) * part if part < 1 else whole
    compute = last * max(1.0, part)
    intra = Link(args.intra_bandwidth * GB, args.intra_latency / 1e6)
    inter = Link(args.inter_bandwidth * GB, args.inter_latency / 1e6)
    sizes = buckets(args.gradient_mb * MB, args.first_bucket * MIB, args.bucket * MIB)
    times = [all_reduce(gpus, args.gpus_per_node, size, intra, inter) for size in sizes]
    exposed = not_hidden(last, args.backward, sizes, times)

    decode = images / nodes / (args.decode_per_node or args.decode_per_core * args.cores_per_node)
    read = images * args.image_kb * 1e3
    storage = max(read / nodes / (args.storage_node * GB), read / (args.storage_total * GB))
    step = max(compute + exposed, decode, storage)
    if step > compute + exposed:
        bottleneck = "decode" if decode >= storage else "storage"
    else:
        bottleneck = "compute" if compute >= sum(times) else "all-reduce"
    ideal = gpus * args.batch / (args.step_ms / 1e3)
    data = read / (compute + exposed)
    return Row(gpus, nodes, images, step, compute, sum(times), exposed, images / step / ideal, data, bottleneck)


def gradient_mb(model: str) -> float:
    """Return the MB of a torchvision model's gradients in fp32, which DDP exchanges under autocast too."""
    import torch
    from torchvision.models import get_model

    with torch.device("meta"):
        return 4 * sum(p.numel() for p in get_model(model).parameters()) / MB


def duration(seconds: float) -> str:
    """Format seconds as hours or minutes."""
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def show(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print the assumptions and a table."""
    print(
        f"{args.batch} images in {args.step_ms:g} ms on one GPU (as given: {1e3 * args.batch / args.step_ms:,.0f} "
        f"images/s), {args.gradient_mb:.1f} MB of gradients, {args.gpus_per_node} GPUs a node; within a node "
        f"{args.intra_bandwidth:g} GB/s and {args.intra_latency:g} µs, between nodes {args.inter_bandwidth:g} GB/s "
        f"a GPU and {args.inter_latency:g} µs; decoding "
        f"{args.decode_per_node or args.decode_per_core * args.cores_per_node:,.0f} images/s a node; storage "
        f"{args.storage_node:g} GB/s a node, {args.storage_total:g} GB/s in all; {args.dataset:,} images of "
        f"{args.image_kb:g} kB, {args.epochs:g} epochs\n"
    )
    print("| GPUs | nodes | global batch | step, ms | all-reduce, ms | not hidden, ms | images/s | efficiency "
          "| data, GB/s a node | data, GB/s | training | bottleneck |")  # fmt: skip
    print("|---:|" + "---:|" * 10 + "---|")
    for row in rows:
        print(
            f"| {row.gpus} | {row.nodes} | {row.images:,} | {1e3 * row.step:.1f} | {1e3 * row.all_reduce:.2f} "
            f"| {1e3 * row.exposed:.2f} | {row.rate:,.0f} | {row.efficiency:.1%} | {row.data / row.nodes / GB:.2f} "
            f"| {row.data / GB:.2f} | {duration(args.dataset * args.epochs / row.rate)} | {row.bottleneck} |"
        )


# --check: the ring formula against gloo


def shared(ranks: int, size: float, link: Link, cores: int) -> float:
    """Return the seconds of ``ring`` on one host, whose cores do the sending.

    Over loopback a CPU copies every byte, and a rank keeps one core busy; where there are more ranks than cores, they
    take turns and share the bandwidth.
    """
    turns = max(1.0, ranks / cores)
    return ring(ranks, size, Link(link.bandwidth / turns, link.latency * turns))


def fit(ranks: int, times: dict[int, float]) -> Link:
    """Fit bandwidth and latency, neither negative, to measured seconds by bytes.

    Least squares of the relative errors, so that small and large sizes count alike.
    """
    import numpy as np
    from scipy.optimize import nnls

    sizes, seconds = np.array(list(times)), np.array(list(times.values()))
    hops = 2 * (ranks - 1)
    terms = np.stack([hops * sizes / ranks, np.full(len(sizes), hops)], 1)
    (inverse, latency), _ = nnls(terms / seconds[:, None], np.ones(len(sizes)))
    return Link(1 / inverse if inverse else math.inf, float(latency))


def measure_rank(rank: int, ranks: int, folder: str, sizes: Sequence[int], repeats: int) -> None:
    """Run one process of ``measure``; rank 0 leaves the seconds by bytes in ``folder``."""
    import torch
    import torch.distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # gloo would look up the host's name, which not all have
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=300))
    fastest = {}
    for size in sizes:
        data = torch.zeros(size // 4)
        chain = max(1, int(4 * MB) // size)  # small sizes in a row, or the clock and the start would count
        blocks = torch.empty(repeats + 1)
        for number in range(repeats + 1):
            began = time.perf_counter()
            for _ in range(chain):
                dist.all_reduce(data)
            blocks[number] = (time.perf_counter() - began) / chain
        dist.all_reduce(blocks, dist.ReduceOp.MAX)  # an all-reduce lasts until all have it
        # The fastest, as other work on the machine only ever adds time. The first block warms up.
        fastest[size] = float(blocks[1:].min())
    if rank == 0:
        Path(folder, "times.json").write_text(json.dumps(fastest))
    dist.destroy_process_group()


def measure(ranks: int, sizes: Sequence[int], repeats: int) -> dict[int, float]:
    """Measure gloo's all-reduce over processes of this machine: bytes -> seconds."""
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure_rank, (ranks, folder, sizes, repeats), nprocs=ranks)
        return {int(size): t for size, t in json.loads(Path(folder, "times.json").read_text()).items()}


def check(args: argparse.Namespace) -> list[tuple[int, int, float, float]]:
    """Fit the given sizes on 2 processes; predict ResNet-50's size on 2, and all sizes on other numbers of processes.

    Returns:
        (processes, bytes, measured, predicted) in seconds.
    """
    sizes = [int(mb * MB) // 4 * 4 for mb in args.sizes_mb]
    cores = len(os.sched_getaffinity(0))
    best: dict[int, dict[int, float]] = {}
    began, load = time.perf_counter(), []
    for _ in range(args.rounds):  # in turns, so that a busy minute of the machine hits all alike
        for ranks in sorted({2, *args.processes}):
            times = measure(ranks, [*sizes, RESNET50], args.repeats)
            old = best.setdefault(ranks, times)
            best[ranks] = {size: min(t, old[size]) for size, t in times.items()}
            load.append(os.getloadavg()[0])
    link = fit(2, {size: best[2][size] for size in sizes})
    rows = [(n, size, t, shared(n, size, link, cores)) for n, times in best.items() for size, t in times.items()]

    seconds = time.perf_counter() - began
    print(
        f"gloo over loopback, cores: {cores}, load average {min(load):.1f} to {max(load):.1f}, fastest of "
        f"{args.rounds} x {args.repeats}, {seconds:.0f} s\nfitted to 2 processes: "
        f"{link.bandwidth / GB:.2f} GB/s a rank, {1e6 * link.latency:.0f} µs a hop\n"
    )
    show_check(rows, link, fitted=sizes)
    return rows


def show_check(rows: Sequence[tuple[int, int, float, float]], link: Link, fitted: Sequence[int]) -> None:
    """Print measured and predicted seconds; the link was fitted to the sizes of ``fitted`` on 2 processes."""
    print("| processes | MB | measured, ms | predicted, ms | predicted/measured | if each rank had a core | |")
    print("|---:|---:|---:|---:|---:|---:|---|")
    for ranks, size, measured, predicted in rows:
        if ranks > 1:
            kind = "fitted" if ranks == 2 and size in fitted else "predicted"
            alone = ring(ranks, size, link) / measured
            print(f"| {ranks} | {size / MB:.3g} | {1e3 * measured:.2f} | {1e3 * predicted:.2f} "
                  f"| {predicted / measured:.2f} | {alone:.2f} | {kind} |")  # fmt: skip
    for ranks, size, measured, _ in rows:
        if ranks == 1 and size == RESNET50:
            print(f"\n1 process: {1e3 * measured:.2f} ms, the call alone; predicted 0")


class Parser(argparse.ArgumentParser):
    """Parse options; errors are one line, without three screens of usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and exit."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def above(low: float, infinite: bool = False, allow: bool = False) -> Callable[[str], float]:
    """Return a parser of numbers above ``low``; it takes ``low`` itself with ``allow``, and inf with ``infinite``."""

    def number(text: str) -> float:
        value = float(text)
        if not (value > low or (allow and value == low)) or (math.isinf(value) and not infinite):
            raise argparse.ArgumentTypeError(f"must be {'at least' if allow else 'above'} {low:g}, got {text}")
        return value

    return number


def count(text: str) -> int:
    """Parse a whole number above 0."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse and check the options; ``gpus`` and ``gradient_mb`` are filled in where they are missing."""
    parser = Parser(prog="plan_scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_step_options(parser)
    add_size_options(parser)
    add_network_options(parser)
    add_data_options(parser)
    add_check_options(parser)
    args = parser.parse_args(argv)
    if args.check:
        return args
    if not (args.batch and args.step_ms):
        parser.error("--batch and --step-ms of a measured step are needed (or --check)")
    if args.backward >= 1:
        parser.error(f"--backward must be below 1, got {args.backward:g}")
    if args.fixed_ms > args.step_ms:
        parser.error(f"--fixed-ms {args.fixed_ms:g} is more than the whole step, {args.step_ms:g}")
    node = args.gpus_per_node
    if not args.gpus:
        doubled = [2**power for power in range(11)]
        args.gpus = [n for n in doubled if n < node] + [node * n for n in doubled if node * n <= 1024]
    for gpus in args.gpus:
        if gpus > node and gpus % node:
            parser.error(f"--gpus {gpus} is not a multiple of --gpus-per-node {node}")
        if args.global_batch and args.global_batch % gpus:
            parser.error(f"--global-batch {args.global_batch} is not a multiple of {gpus} GPUs; choose --gpus")
    if args.gradient_mb is None:
        try:
            args.gradient_mb = gradient_mb(args.model)
        except ValueError as error:
            parser.error(f"--model: {error}")
    return args


positive, limit, least = above(0), above(0, infinite=True), above(0, allow=True)


def add_step_options(parser: Parser) -> None:
    """Add the options of the measured step."""
    add = parser.add_argument_group("the measured step of one worker").add_argument
    add("--batch", type=count, help="images in the step")
    add("--step-ms", type=positive, help="milliseconds of the step")
    add("--model", default="resnet50", help="torchvision's name, for the bytes of gradients; %(default)s")
    add("--gradient-mb", type=positive, help="MB of gradients, in place of --model's parameters x 4 bytes")
    add("--backward", type=above(0), default=2 / 3, help="share of the step that is the backward pass; 2/3: a "
        "convolution has one product forward and two backward")  # fmt: skip
    add("--bucket", type=positive, default=25, help="MiB of DDP's buckets; %(default)s, DDP's bucket_cap_mb")
    add("--first-bucket", type=positive, default=1, help="MiB of the first bucket; %(default)s, as in DDP")


def add_size_options(parser: Parser) -> None:
    """Add the options of the numbers of GPUs and of the training."""
    add = parser.add_argument_group("how many").add_argument
    add("--gpus", type=count, nargs="+", help="default: 1, 2, 4 ... up to a node, then nodes doubled up to 1024 GPUs")
    add("--gpus-per-node", type=count, default=8, help="%(default)s")
    add("--global-batch", type=count, help="images in a step over all GPUs: strong scaling. Default: --batch on "
        "each GPU, weak scaling")  # fmt: skip
    add("--fixed-ms", type=least, default=0, help="ms of the step that do not shrink with the batch, in strong "
        "scaling: kernel starts, update; measure two batches to find it. %(default)s is optimistic")  # fmt: skip
    add("--dataset", type=count, default=1_281_167, help="images; %(default)s, ImageNet")
    add("--epochs", type=positive, default=90, help="%(default)s")


def add_network_options(parser: Parser) -> None:
    """Add the options of the network."""
    add = parser.add_argument_group("network, of each GPU").add_argument
    add("--intra-bandwidth", type=limit, default=370, help="GB/s within a node; %(default)s, NCCL's ring over an "
        "H100's NVLink (nccl-tests issue 212)")  # fmt: skip
    add("--intra-latency", type=least, default=3.4, help="µs a hop; %(default)s, NCCL's own figure for a ring over "
        "NVLink (src/graph/tuning.cc, hwLat, Simple)")  # fmt: skip
    add("--inter-bandwidth", type=limit, default=47, help="GB/s between nodes; %(default)s, of a 400 Gbit/s card per "
        "GPU (nccl-tests issue 290: 46 to 48)")  # fmt: skip
    add("--inter-latency", type=least, default=14, help="µs a hop; %(default)s, as above, over the network")


def add_data_options(parser: Parser) -> None:
    """Add the options of decoding and storage."""
    add = parser.add_argument_group("data; inf: no limit").add_argument
    add("--decode-per-core", type=limit, default=593, help="images/s per core; %(default)s: half of what 2 cores did "
        "in docs/results/loader.md")  # fmt: skip
    add("--cores-per-node", type=count, default=112, help="%(default)s, 2 x Xeon 8480C of a DGX H100")
    add("--decode-per-node", type=limit, help="images/s per node, in place of these two (GPU decoding)")
    add("--image-kb", type=positive, default=110, help="mean kB of a stored image; %(default)s, ImageNet")
    add("--storage-node", type=limit, default=12.5, help="GB/s that a node can read; %(default)s: a 100 Gbit/s "
        "link, an assumption")  # fmt: skip
    add("--storage-total", type=limit, default=40, help="GB/s that storage gives all nodes together; %(default)s, an "
        "assumption: measure yours. inf once the nodes have the data (cache.dir)")  # fmt: skip


def add_check_options(parser: Parser) -> None:
    """Add the options of --check."""
    add = parser.add_argument_group("checking the all-reduce formula here").add_argument
    add("--check", action="store_true", help="measure gloo's all-reduce and compare; no plan")
    add("--processes", type=count, nargs="+", default=[1, 2, 4], help="%(default)s; 2 is fitted to in any case")
    add("--sizes-mb", type=above(0.0001), nargs="+", default=[0.1, 1, 4, 16, 64], help="%(default)s; all are "
        "fitted to, and ResNet-50's 102.2 is predicted")  # fmt: skip
    add("--rounds", type=count, default=3, help="times that all processes are started anew; %(default)s")
    add("--repeats", type=count, default=10, help="measurements per round; %(default)s")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan, or with --check the comparison."""
    args = parse(argv)
    if args.check:
        check(args)
    else:
        show([plan(gpus, args) for gpus in args.gpus], args)


if __name__ == "__main__":
    main()
