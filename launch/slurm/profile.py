"""A site's profile (``configs/clusters/NAME.yaml``): what its SLURM wants to be told, as data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, configs_dir
from dist_train.config.io import Parser, check_keys, check_yaml, find_yaml
from dist_train.errors import UserError

CHAIN = ("prepare", *STAGES)
"""The stages in the order of a chain; ``prepare`` draws and packs where the configuration asks for it."""


@dataclass(kw_only=True)
class Resources:
    """What a job asks for. Not given: the site's default."""

    partition: str | None = None
    """Partition (queue)."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, such as the kind of GPU."""
    nodes: int | None = None
    """Nodes."""
    gpus_per_node: int | None = None
    """GPUs, and so ranks, on each node; 0 = a job on CPUs."""
    tasks_per_node: int | None = None
    """Ranks on each node where that is not one a GPU."""
    cpus_per_task: int | None = None
    """CPUs of each rank: DALI's threads. 8 to 12 a GPU keep it fed."""
    mem_gb: float | None = None
    """Memory a node, in gigabytes (2^30 bytes)."""
    minutes: int | None = None
    """Time limit of one start. A run that is not done by then saves, requeues itself and continues."""

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("tasks_per_node", 1), ("cpus_per_task", 1),
                            ("minutes", 1), ("mem_gb", 0)):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value!r}: must be >= {least}")

    @property
    def ranks_per_node(self) -> int:
        return self.tasks_per_node or self.gpus_per_node or 1


@dataclass(kw_only=True)
class Cluster(Resources):
    """A site."""

    account: str | None = None
    """Account to charge."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the start: module load and the like. One that fails ends the job."""
    environment: dict[str, str | int | float] = field(default_factory=dict)
    """Variables to set, such as NCCL_SOCKET_IFNAME; a $VARIABLE in a value is meant."""
    python: str | None = None
    """Python on the compute nodes; default: the one that submits."""
    container: str | None = None
    """Command that runs what follows it in a container: "apptainer exec --nv dist_train.sif"."""
    scratch: str | None = None
    """Folder on a node's own disk for cached shards (cache.dir), $VARIABLES allowed."""
    sbatch: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Further options of sbatch, name: value; true = an option without a value (exclusive: true)."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun, such as --cpu-bind=none."""
    starts: int = 3
    """Give up after so many starts of a job, one after the other, that made no progress."""
    stages: dict[str, Resources] = field(default_factory=dict)
    """What single stages (prepare, pretrain, extract, learn, evaluate) ask for instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.starts < 1:
            raise ValueError(f"starts={self.starts!r}: must be >= 1")


def load_cluster(name: str) -> Cluster:
    """A profile by file, or by its name in configs/clusters/.

    Raises:
        UserError: no such profile, or a key or value of it is wrong.
    """
    path = find_yaml("--cluster", name, configs_dir() / "clusters", "*.yaml")
    content = check_yaml(path, Cluster)
    own = content.pop("stages", None) or {}
    if not isinstance(own, dict):
        raise UserError(f"{path}: stages={own}: must be names and values: {{learn: {{nodes: 1}}}}")
    stages = {}
    for stage, wanted in own.items():
        if stage not in CHAIN:
            raise UserError(f"{path}: stages.{stage}: no such stage; one of {', '.join(CHAIN)}")
        stages[stage] = _made(path, f"stages.{stage}", Resources, wanted)
    return replace(_made(path, "", Cluster, content), stages=stages)


def _made(path: Path, where: str, kind: type[Any], content: Any) -> Any:
    """A part of a profile, checked."""
    prefix = f"{where}." if where else ""
    if not isinstance(content, dict):
        raise UserError(f"{path}: {where}={content}: must be names and values: {{nodes: 1}}")
    check_keys(path, content, kind, prefix)
    parser = Parser()
    parser.add_class_arguments(kind, skip={"stages"} if kind is Cluster else set())
    try:
        made = parser.instantiate(parser.parse_object(content))
        return kind(**{key: getattr(made, key) for key in kind.__dataclass_fields__ if key in made})
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {prefix}{' '.join(str(error).split())}") from None


def resources(cluster: Cluster, stage: str, asked: dict[str, Any]) -> Resources:
    """What a stage's job asks for: the command line's word, then the stage's, then the site's.

    ``prepare`` packs with processes of its own on one node, and without GPUs unless its entry says so.

    Raises:
        UserError: a value of the command line is wrong, or there are more ranks than GPUs.
    """
    names = Resources.__dataclass_fields__
    found = {name: getattr(cluster, name) for name in names}
    if stage == "prepare":
        found |= {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1}
        asked = {key: value for key, value in asked.items() if key not in found or key in ("partition", "qos")}
    own = cluster.stages.get(stage)
    for given in (dataclasses.asdict(own) if own else {}, asked):
        found |= {key: value for key, value in given.items() if value is not None and key in names}
    try:
        made = Resources(**found)
    except ValueError as error:
        raise UserError(f"--{error}") from None  # the profile was checked before: it is the command line's
    if made.gpus_per_node and made.ranks_per_node > made.gpus_per_node:
        raise UserError(
            f"{stage}: tasks_per_node={made.tasks_per_node} with gpus_per_node={made.gpus_per_node}: ranks cannot "
            f"share a GPU; leave tasks_per_node out, or give stages.{stage} of the profile one that fits"
        )
    return made
