"""A site's profile (``configs/clusters/NAME.yaml``), and what the job of a stage asks SLURM for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dist_train.config import STAGES, configs_dir
from dist_train.config.checks import typed
from dist_train.config.io import Parser, check_keys, check_yaml, find_yaml
from dist_train.errors import UserError

CHAIN = ("prepare", *STAGES)
"""The stages in the order of a chain; ``prepare`` draws and packs where the configuration asks for it."""


@dataclass(kw_only=True)
class Resources:
    """Hold what a job asks for. Where a value is None, the site's default applies."""

    partition: str | None = None
    """Partition (queue)."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, such as the kind of GPU."""
    nodes: int | None = None
    """Number of nodes."""
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
                raise ValueError(f"{name}={typed(value)}: must be >= {least}")

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node: as many as the profile says, else one for each GPU, else one."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def ranks(self) -> int:
        """Ranks on all nodes together."""
        return (self.nodes or 1) * self.ranks_per_node


@dataclass(kw_only=True)
class StageResources(Resources):
    """Hold what the job of one stage asks for."""

    array: int | None = None
    """For evaluate: an array of this many jobs, which share the draws, and a job that merges what they find."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.array is not None and self.array < 1:
            raise ValueError(f"array={typed(self.array)}: must be >= 1")


@dataclass(kw_only=True)
class Cluster(Resources):
    """Hold the profile of a site."""

    account: str | None = None
    """Account to charge."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the start: module load and the like. A line that fails ends the job."""
    environment: dict[str, str | int | float] = field(default_factory=dict)
    """Variables to set, such as NCCL_SOCKET_IFNAME; a $VARIABLE in a value is expanded on the node."""
    python: str | None = None
    """Python on the compute nodes; default: the Python that submits."""
    container: str | None = None
    """Command that runs what follows it in a container: "apptainer exec --nv dist_train.sif"."""
    scratch: str | None = None
    """Folder on a node's own disk for cached shards (cache.dir), $VARIABLES allowed."""
    sbatch: dict[str, str | int | float | bool] = field(default_factory=dict)
    """Further options of sbatch, name: value; true = an option without a value (exclusive: true)."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun, such as --cpu-bind=none."""
    starts: int = 3
    """Give up after this many starts of a job in a row that made no progress."""
    stages: dict[str, StageResources] = field(default_factory=dict)
    """What single stages (prepare, pretrain, extract, networks, learn, evaluate) ask for instead."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.starts < 1:
            raise ValueError(f"starts={typed(self.starts)}: must be >= 1")

    @property
    def shares(self) -> int:
        """Jobs that share the draws of ``evaluate``; 1: it is one job."""
        return (self.stages["evaluate"].array or 1) if "evaluate" in self.stages else 1


def load_cluster(name: str) -> Cluster:
    """Return the profile in a file, or the packaged profile of this name (``configs/clusters``).

    Raises:
        UserError: there is no such profile, or a key or value in it is wrong.
    """
    path = find_yaml("--cluster", name, configs_dir() / "clusters", "*.yaml")
    try:
        content = check_yaml(path, Cluster)
    except UserError as error:
        raise _in_stages(error) from None
    by_stage = content.pop("stages", None) or {}
    if not isinstance(by_stage, dict):
        raise UserError(f"{path}: stages={typed(by_stage)}: must be names and values: {{learn: {{nodes: 1}}}}")
    stages = {}
    for stage, wanted in by_stage.items():
        if stage not in CHAIN:
            raise UserError(f"{path}: stages.{stage}: no such stage; one of {', '.join(CHAIN)}")
        stages[stage] = _checked(path, f"stages.{stage}", StageResources, wanted)
        if stages[stage].array and stage != "evaluate":
            given = f"stages.{stage}.array={typed(stages[stage].array)}"
            raise UserError(f"{path}: {given}: only evaluate can be spread over an array; leave it out")
    cluster: Cluster = _checked(path, "", Cluster, content)
    return replace(cluster, stages=stages)


def _in_stages(error: UserError) -> UserError:
    """Return the error of a profile's keys; it says where a stage, or what only a stage has, belongs."""
    line, unknown, key = str(error).partition("unknown key ")
    name = key.split("'")[1] if unknown else ""
    if name == "array":
        return UserError(f"{line}{name}: is of a stage; write it as stages: {{evaluate: {{array: 3}}}}")
    if name in CHAIN:
        return UserError(f"{line}{name}: stages stand under stages; write it as stages: {{{name}: {{nodes: 1}}}}")
    return error


def _checked(path: Path, section: str, kind: type[Any], content: Any) -> Any:
    """Return a section of a profile as a ``kind``, whose fields say which keys and values are right."""
    prefix = f"{section}." if section else ""
    if not isinstance(content, dict):
        raise UserError(f"{path}: {section}={typed(content)}: must be names and values: {{nodes: 1}}")
    check_keys(path, content, kind, prefix)
    parser = Parser()
    parser.add_class_arguments(kind, skip={"stages"} if kind is Cluster else set())
    try:
        values = parser.instantiate(parser.parse_object(content))
        return kind(**{key: getattr(values, key) for key in kind.__dataclass_fields__ if key in values})
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {prefix}{' '.join(str(error).split())}") from None


def stage_resources(cluster: Cluster, stage: str, overrides: Mapping[str, Any]) -> Resources:
    """Return what a stage's job asks for: the command line's ``overrides``, else the stage's own, else the site's.

    ``prepare`` packs with processes of its own on one node, and without GPUs unless its entry asks for them.

    Raises:
        UserError: a value of the command line is wrong, or there are more ranks than GPUs.
    """
    names = Resources.__dataclass_fields__
    values = {name: getattr(cluster, name) for name in names}
    if stage == "prepare":
        values |= {"nodes": 1, "gpus_per_node": 0, "tasks_per_node": 1}
        overrides = {key: value for key, value in overrides.items() if key in ("partition", "qos")}
    own = cluster.stages.get(stage)
    for level in (dataclasses.asdict(own) if own else {}, overrides):
        values |= {key: value for key, value in level.items() if value is not None and key in names}
    try:
        wanted = Resources(**values)
    except ValueError as error:
        raise UserError(f"--{error}") from None  # the profile was checked before, so it is the command line's
    if wanted.gpus_per_node and wanted.ranks_per_node > wanted.gpus_per_node:
        raise UserError(
            f"{stage}: tasks_per_node={wanted.tasks_per_node} with gpus_per_node={wanted.gpus_per_node}: ranks cannot "
            f"share a GPU; leave tasks_per_node out, or give stages.{stage} of the profile one that fits"
        )
    return wanted
