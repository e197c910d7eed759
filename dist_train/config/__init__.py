"""The typed configuration of a run: one YAML file, the same names as command-line options.

Every default carries its source. Values are checked when the object is made, so a run never
starts on a value that would fail hours later. ``dist_train.config.io`` reads files and options.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dist_train.config.backbone import SOURCES, BackboneConfig, Interpolation, Preprocessing
from dist_train.config.checks import at_least, check_values, require
from dist_train.config.data import CacheConfig, DataConfig, DrawConfig, Orientation, PackConfig
from dist_train.config.features import FeaturesConfig
from dist_train.config.fewshot import EvaluateConfig, ExtractConfig, LearnConfig, LearnPrecision, Rule, Views
from dist_train.config.meaning import check_meaning
from dist_train.config.networks import NETWORK_OF, NETWORKS, NetworksConfig
from dist_train.config.pretrain import MODELS, Precision, PretrainConfig, Strategy

STAGES = ("pretrain", "extract", "networks", "learn", "evaluate")
"""In the order in which ``run`` takes them; ``networks`` only where a row needs it (``Config.stages``)."""
GONE = {
    "pretrain.tf32": "is a value of pretrain.precision now; leave it out, and for float32 give "
    "--pretrain.precision tf32 (GPUs round products) or fp32 (exact)"
}
"""Keys of older versions, and what to give instead."""

__all__ = [
    "GONE",
    "MODELS",
    "NETWORKS",
    "NETWORK_OF",
    "SOURCES",
    "STAGES",
    "BackboneConfig",
    "CacheConfig",
    "Config",
    "DataConfig",
    "DrawConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "FeaturesConfig",
    "Interpolation",
    "LearnConfig",
    "LearnPrecision",
    "MonitorConfig",
    "NetworksConfig",
    "Orientation",
    "PackConfig",
    "Precision",
    "Preprocessing",
    "PretrainConfig",
    "Rule",
    "Strategy",
    "Views",
    "check_meaning",
    "configs_dir",
    "digest",
    "to_dict",
    "to_yaml",
]


@dataclass(kw_only=True)
class MonitorConfig:
    """Set when ranks give up on each other."""

    start_timeout: float = 600.0
    """Seconds until all ranks must have met; nodes of a cluster do not start at the same moment."""
    rank_timeout: float = 60.0
    """Seconds without a sign of life until a rank counts as dead and the others leave."""
    hang_timeout: float = 1800.0
    """Seconds without progress (a step, a block, a draw) until a rank counts as hung and all leave."""

    def __post_init__(self) -> None:
        at_least(self, "monitor", 1, "start_timeout", "rank_timeout", "hang_timeout")


@dataclass(kw_only=True)
class Config:
    """Configure a run, from images to the table."""

    name: str = "run"
    """Name of the run: its folder is RUNS/NAME, and another start with the same name continues it."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Seed of weights, order, augmentation and predictor training."""
    pack: PackConfig | None = None
    """Where this section is given, ``run`` packs first if the shards are not there."""
    max_minutes: float | None = None
    """Save and stop after this many minutes, as on a signal; the same command continues. Under SLURM the
    job's own end is a deadline too."""
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    backbone: BackboneConfig | None = None
    """A network that is trained already, in place of the training: ``pretrain`` then takes it in within seconds."""
    features: FeaturesConfig | None = None
    """Activations from elsewhere, in place of images and a backbone: ``pretrain`` and ``extract`` then take them in."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    networks: NetworksConfig = field(default_factory=NetworksConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        check_meaning(self)
        ok = bool(self.name) and "/" not in self.name and self.name not in (".", "..")
        ok = ok and self.name.isprintable() and len(self.name.encode()) <= 200
        require(ok, "name", self.name, "a folder name of at most 200 bytes")
        require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")  # NumPy's limit
        ok = self.data.ramp_from is None or not self.trains or self.data.ramp_epochs[1] < self.pretrain.epochs
        wanted = f"over before pretrain.epochs={self.pretrain.epochs:g}"
        require(ok, "data.ramp_epochs", self.data.ramp_epochs, wanted)
        ok = self.max_minutes is None or self.max_minutes > 0
        require(ok, "max_minutes", self.max_minutes, "> 0")
        check_values(dataclasses.asdict(self))

    @property
    def trains(self) -> bool:
        """Whether the run trains a network, and takes in neither a trained one nor features."""
        return self.backbone is None and self.features is None

    @property
    def networks_to_train(self) -> list[str]:
        """The networks of ``NETWORKS`` that rows of ``evaluate.methods`` are made from."""
        return [network for network, rows in NETWORKS.items() if {*rows} & {*self.evaluate.methods}]

    @property
    def stages(self) -> tuple[str, ...]:
        """The run's stages in order: ``STAGES``, without ``networks`` where no row needs a network."""
        return tuple(stage for stage in STAGES if stage != "networks" or self.networks_to_train)

    def stages_before(self, stage: str) -> tuple[str, ...]:
        """Return the run's stages that must be done before this stage begins."""
        before = STAGES[: STAGES.index(stage)]
        return tuple(name for name in before if name in self.stages and (name != "networks" or stage == "evaluate"))

    @property
    def run_dir(self) -> Path:
        """Return the run's folder, RUNS/NAME."""
        return self.runs / self.name


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON types (paths as strings, tuples as lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


class _Dumper(yaml.SafeDumper):
    """Write mappings as blocks and lists on one line; quote text that another reader could take for a number."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # In YAML 1.1, which this writes, 1e3 is text, for an exponent needs a point; other readers take it for a number.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="'" if text[:1] in "+-.0123456789" else None)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True))


def to_yaml(config: Config) -> str:
    """Return a configuration as YAML, in the order of its sections; read back, it is equal."""
    text: str = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def digest(value: Any) -> str:
    """Return the hash of a JSON value, whatever the order of its keys: 16 hex digits of sha256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configs_dir() -> Path:
    """Return the folder of packaged configurations: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
