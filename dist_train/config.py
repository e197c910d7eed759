"""The typed configuration of a run: one YAML file, the same names as command-line options.

Every default carries its source. Values are checked when the object is made, so a run never
starts on a value that would fail hours later. ``launch/cli.py`` does the parsing (jsonargparse).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Precision = Literal["bf16", "fp16", "fp32"]
Strategy = Literal["ddp", "zero0", "zero1", "zero2", "zero3"]
METHODS = ("nn", "mean", "phi1", "phi2", "phi2star")
STAGES = ("pretrain", "extract", "learn", "evaluate")
PREDICTORS = ("phi1", "phi2", "phi2star")


def _require(ok: bool, key: str, value: object, wanted: str) -> None:
    if not ok:
        raise ValueError(f"{key}={value!r}: must be {wanted}")


def _at_least(owner: object, prefix: str, minimum: float, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value is None or value >= minimum, f"{prefix}.{name}", value, f">= {minimum:g}")


@dataclass(kw_only=True)
class DrawConfig:
    """Images drawn by the program, so that everything can be tried without data."""

    base_classes: int = 90
    """Classes for the base set."""
    novel_classes: int = 10
    """Classes for the novel set."""
    train_per_class: int = 100
    """Training images a class."""
    val_per_class: int = 20
    """Validation images a class."""
    size: int = 64
    """Typical longer side in pixels; every image has its own size around it."""
    seed: int = 0
    """Seed of the drawing."""

    def __post_init__(self) -> None:
        _at_least(self, "draw", 1, "base_classes", "novel_classes", "train_per_class", "val_per_class")
        _at_least(self, "draw", 16, "size")
        _require(0 <= self.seed < 2**32, "draw.seed", self.seed, "in [0, 2^32)")


@dataclass(kw_only=True)
class PackConfig:
    """From archives or folders to shards."""

    train: Path | None = None
    """ILSVRC2012_img_train.tar (a tar of one tar per wnid) or a folder with one folder per class."""
    val: Path | None = None
    """ILSVRC2012_img_val.tar (needs --devkit) or a folder with one folder per class."""
    devkit: Path | None = None
    """ILSVRC2012_devkit_t12.tar.gz, for the labels of a flat validation set."""
    shard_mb: float = 128.0
    """Target size of a shard in megabytes (10^6 bytes). 128 is large enough for sequential disks
    and object stores and small enough to cache and to verify one at a time."""
    shorter_side: int | None = None
    """Re-encode: shrink so that the shorter side has this many pixels. Default: bytes as they are."""
    quality: int | None = None
    """Re-encode: JPEG quality, 1 to 100 (default 90 where --shorter_side is given)."""
    workers: int = 0
    """Processes; 0 = one per usable CPU."""
    seed: int = 0
    """Seed of the global shuffle."""
    draw: DrawConfig | None = None
    """Draw the images first, into the folders named by train and val (the demo)."""

    def __post_init__(self) -> None:
        _require(self.shard_mb > 0, "pack.shard_mb", self.shard_mb, "> 0")
        _at_least(self, "pack", 1, "shorter_side", "quality")
        _at_least(self, "pack", 0, "workers")
        _require(0 <= self.seed < 2**32, "pack.seed", self.seed, "in [0, 2^32)")
        _require(self.quality is None or self.quality <= 100, "pack.quality", self.quality, "<= 100")


@dataclass(kw_only=True)
class DataConfig:
    """Where the images are, how they are split and how they become tensors."""

    shards: str = "shards"
    """Folder made by ``dist-train pack``, or its URL (s3://, gs://, http(s)://) once it is uploaded."""
    split: str = "imagenet_900_100"
    """A published split by name (configs/splits/NAME.json), or the path of a split file."""
    holdout: Literal["novel", "pseudo-novel"] = "novel"
    """Which classes play the novel ones. ``pseudo-novel`` takes the split's marked base classes
    out of the base and evaluates on them: the honest way to choose hyper-parameters."""
    train_size: int = 224
    """Side of the training crop in pixels."""
    eval_resize: int = 256
    """Evaluation: shorter side after resizing, in pixels (torchvision's reference)."""
    eval_size: int = 224
    """Evaluation: side of the centre crop, in pixels."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: share of the area (Szegedy et al. 2015; torchvision's default)."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: aspect ratio, width / height (torchvision's default)."""
    augment: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Operations on the training crops, by DALI's suites: RandAugment (Cubuk et al. 2020) with timm's noise
    on the magnitude, or TrivialAugment (Mueller, Hutter 2021): one operation of any magnitude."""
    augment_ops: int = 2
    """RandAugment: operations an image (its paper and timm)."""
    augment_magnitude: float = 7
    """RandAugment: mean magnitude, 0 to 10 (timm's m7: ResNet strikes back, Wightman et al. 2021)."""
    augment_std: float = 0.5
    """RandAugment: standard deviation of the magnitude (timm's mstd0.5, as above)."""
    ramp_from: int | None = None
    """Progressive resizing: side of the training crop at the start; it grows to train_size. Small
    crops are cheap, and the last epochs see the large ones (FFCV's recipes: 160 to 192)."""
    ramp_epochs: tuple[float, float] = (65, 76)
    """Progressive resizing: first and last epoch of the growth, linear in multiples of 32 (FFCV's, of 88)."""
    block_shards: int = 0
    """Shuffle in blocks of so many shards, drawn anew each epoch, so that a cache smaller than the
    data serves; 0 = one permutation of all images (docs/reliability.md compares them)."""
    max_bad_fraction: float = 1e-3
    """Training images that cannot be read or decoded are replaced by the next of their class and
    counted; past this share of the images seen (at least one epoch's) the run fails."""
    threads: int = 0
    """DALI's CPU threads per rank; 0 = this rank's share of the usable CPUs."""
    prefetch: int = 2
    """Batches made ahead of the one in use."""
    decoder: Literal["auto", "cpu", "mixed"] = "auto"
    """Where JPEGs are decoded: ``mixed`` is nvJPEG on the GPU; auto takes it where there is one."""

    def __post_init__(self) -> None:
        _at_least(self, "data", 1, "train_size", "eval_resize", "eval_size", "prefetch")
        _at_least(self, "data", 0, "threads", "block_shards")
        _require(bool(self.shards), "data.shards", self.shards, "a folder or a URL")
        _require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", self.max_bad_fraction, "in [0, 1]")
        _require(self.eval_size <= self.eval_resize, "data.eval_size", self.eval_size, "<= data.eval_resize")
        low, high = self.scale
        _require(0 < low <= high <= 1, "data.scale", self.scale, "two shares, 0 < low <= high <= 1")
        low, high = self.ratio
        _require(0 < low <= high, "data.ratio", self.ratio, "two ratios, 0 < low <= high")
        _at_least(self, "data", 1, "augment_ops", "ramp_from")
        _at_least(self, "data", 0, "augment_std")
        _require(0 <= self.augment_magnitude <= 10, "data.augment_magnitude", self.augment_magnitude, "in [0, 10]")
        ok = self.ramp_from is None or self.ramp_from <= self.train_size
        _require(ok, "data.ramp_from", self.ramp_from, "<= data.train_size")
        begin, end = self.ramp_epochs
        _require(0 <= begin < end, "data.ramp_epochs", self.ramp_epochs, "two epochs, 0 <= first < last")

    @property
    def operations(self) -> int:
        """Operations that ``augment`` applies to a training image."""
        return {"none": 0, "randaugment": self.augment_ops, "trivialaugment": 1}[self.augment]


@dataclass(kw_only=True)
class CacheConfig:
    """Shards of a URL on this node's disk: shared by all ranks and runs, each fetched once."""

    dir: Path = Path("~/.cache/dist_train")
    """Folder on a local disk of the node."""
    gb: float = 200.0
    """Limit in gigabytes (10^9 bytes); the least recently used shards make room."""
    retries: int = 5
    """Further attempts for a file, after 1, 2, 4, ... seconds."""
    timeout: float = 60.0
    """Seconds without a byte until an attempt is given up."""
    downloads: int = 4
    """Shards fetched at the same time on a node."""

    def __post_init__(self) -> None:
        _require(self.gb > 0, "cache.gb", self.gb, "> 0")
        _require(self.timeout > 0, "cache.timeout", self.timeout, "> 0")
        _at_least(self, "cache", 0, "retries")
        _at_least(self, "cache", 1, "downloads")


@dataclass(kw_only=True)
class MonitorConfig:
    """When ranks give up on each other."""

    start_timeout: float = 600.0
    """Seconds for all ranks to come; nodes of a cluster do not start at the same moment."""
    rank_timeout: float = 60.0
    """Seconds without a sign of life until a rank counts as dead and the others leave."""
    hang_timeout: float = 1800.0
    """Seconds without progress (a step, a block, a draw) until a rank counts as hung and all leave."""

    def __post_init__(self) -> None:
        _at_least(self, "monitor", 1, "start_timeout", "rank_timeout", "hang_timeout")


@dataclass(kw_only=True)
class PretrainConfig:
    """The backbone on the base classes. Defaults: torchvision's 90-epoch ResNet reference with
    Goyal et al. 2017 (warm-up, linear rule), cosine decay and label smoothing (He et al. 2019)."""

    model: str = "resnet50"
    """Any torchvision ResNet by name (the paper: ResNet-50)."""
    small_stem: bool = False
    """3x3 stem without max-pooling, for images of 32 pixels or so (He et al. 2016, section 4.2)."""
    epochs: float = 90
    """Passes over the base images."""
    global_batch: int = 1024
    """Images per optimiser step, over all ranks and accumulation steps."""
    accumulate: int = 1
    """Forward/backward passes per optimiser step."""
    lr: float = 0.4
    """Peak learning rate: 0.1 per 256 images (Goyal et al. 2017), for the whole global batch."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """none: lr is for the whole global batch; linear, sqrt: it is for 256 images, and multiplied by
    global_batch / 256 (Goyal et al. 2017) or by its square root."""
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """After the warm-up: half a cosine to zero, a line to zero, or a tenth at each of the milestones."""
    milestones: list[float] = field(default_factory=lambda: [30, 60, 80])
    """Epochs of schedule step (Goyal et al. 2017)."""
    optimizer: Literal["sgd", "lamb", "lars"] = "sgd"
    """sgd in Nesterov's form; lamb and lars adapt the rate of each layer (timm's)."""
    momentum: float = 0.9
    """Momentum of sgd and lars."""
    weight_decay: float = 1e-4
    """On weights of convolutions and of the classifier only; norms and biases have none."""
    loss: Literal["ce", "bce"] = "ce"
    """Cross entropy, or binary cross entropy of each class (Wightman et al. 2021)."""
    bce_threshold: float = 0.2
    """bce: a class with more than this share of a mixed image is a target of 1, else of 0."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes (where images are mixed, by ce only)."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 = none. With cutmix, one of both is drawn for each batch."""
    cutmix: float = 0.0
    """Alpha of cutmix's; 0 = none."""
    stochastic_depth: float = 0.0
    """Probability that the last residual branch is left out, growing from 0 at the first (Huang et al. 2016)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then evaluated and goes on; 0 = none."""
    warmup_epochs: float = 5
    """Linear warm-up from zero."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 = not clipped."""
    strategy: Strategy = "ddp"
    """How ranks train together: PyTorch's DDP, or DeepSpeed's ZeRO of stage 0 to 3. Checkpoints are the
    same: a run may change it on the way."""
    offload: bool = False
    """Keep the optimiser's state, and make its step, on the CPU (zero1 to zero3)."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further options of DeepSpeed's configuration, as its documentation names them."""
    compile: bool = False
    """Train through torch.compile (strategy ddp)."""
    precision: Precision = "bf16"
    """Autocast type over float32 master weights; fp16 adds a gradient scaler."""
    tf32: bool = True
    """Let GPUs compute float32 products in TF32."""
    channels_last: bool = True
    """Memory format of the convolutions (NHWC is the fast one on GPUs and on oneDNN CPUs)."""
    sync_batchnorm: bool = False
    """Batch norm statistics over all ranks (GPUs only): the training then does not depend on the
    number of ranks either; without it each rank normalises by its own part of the batch."""
    checkpoint_every: int = 1000
    """Optimiser steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept; the best one is kept besides."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps are kept for good; 0 = none."""
    log_every: int = 20
    """Optimiser steps between lines in TensorBoard and metrics.jsonl."""

    def __post_init__(self) -> None:
        names = ("global_batch", "accumulate", "checkpoint_every", "log_every", "keep")
        _at_least(self, "pretrain", 1, *names)
        _at_least(self, "pretrain", 0, "keep_every", "lr", "momentum", "weight_decay", "warmup_epochs")
        _require(self.epochs > 0, "pretrain.epochs", self.epochs, "> 0")
        ok = self.warmup_epochs < self.epochs
        _require(ok, "pretrain.warmup_epochs", self.warmup_epochs, "< pretrain.epochs")
        ok = 0 <= self.label_smoothing < 1
        _require(ok, "pretrain.label_smoothing", self.label_smoothing, "in [0, 1)")
        _at_least(self, "pretrain", 0, "clip_norm", "mixup", "cutmix")
        for name in ("stochastic_depth", "ema", "bce_threshold"):
            _require(0 <= getattr(self, name) < 1, f"pretrain.{name}", getattr(self, name), "in [0, 1)")
        ok = self.milestones == sorted(self.milestones) and all(mark > 0 for mark in self.milestones)
        _require(ok, "pretrain.milestones", self.milestones, "epochs in order")
        ok = self.optimizer == "sgd" or self.strategy in ("ddp", "zero0")
        _require(ok, "pretrain.optimizer", self.optimizer, f"sgd with {self.strategy}, which cuts layers into pieces")
        ok = not self.ema or self.strategy != "zero3"
        _require(ok, "pretrain.ema", self.ema, "0 with pretrain.strategy=zero3, where no rank has the weights")
        ok = not self.offload or self.strategy in ("zero1", "zero2", "zero3")
        _require(ok, "pretrain.offload", self.offload, "false unless pretrain.strategy is zero1, zero2 or zero3")
        ok = not self.deepspeed or self.strategy != "ddp"
        _require(ok, "pretrain.deepspeed", self.deepspeed, "empty unless pretrain.strategy is zero0 to zero3")
        ok = not self.compile or self.strategy == "ddp"
        _require(ok, "pretrain.compile", self.compile, "false unless pretrain.strategy is ddp")
        ok = self.global_batch % self.accumulate == 0
        _require(ok, "pretrain.global_batch", self.global_batch, "a multiple of pretrain.accumulate")


@dataclass(kw_only=True)
class ExtractConfig:
    """The frozen backbone once over every image."""

    batch: int = 256
    """Images per forward pass on one rank."""
    block: int = 4096
    """Rows between two marks of progress; an interruption costs at most one block a rank."""
    precision: Precision = "bf16"
    """Autocast type of the forward pass; activations are stored as float16."""

    def __post_init__(self) -> None:
        _at_least(self, "extract", 1, "batch", "block")


@dataclass(kw_only=True)
class LearnConfig:
    """The predictor (METHOD: paper section 3; release = the authors' MiniImageNet code)."""

    methods: list[str] = field(default_factory=lambda: list(PREDICTORS))
    """Which predictors: phi1 (one layer), phi2 (two), phi2star (two, on class means only)."""
    steps: int = 75_000
    """Optimiser steps (paper: 300 epochs of 250 batches)."""
    lr: float = 1e-3
    """Peak learning rate (paper and release)."""
    schedule: Literal["constant", "release"] = "constant"
    """constant (the paper names one rate), or the release's steps: x 0.5, 0.1, 0.01 of lr after
    50, 120 and 175 of its 200 epochs, stretched over ``steps``."""
    momentum: float = 0.9
    """SGD momentum (paper)."""
    weight_decay: float = 5e-4
    """The lambda of the loss (paper)."""
    p_mean: float = 0.9
    """Probability that a class is represented by its mean (paper 0.9, release 0.3)."""
    normalise_input: bool = True
    """L2-normalise the statistic before phi (release; the paper does not say)."""
    normalise_output: bool = True
    """L2-normalise the predicted rows (paper and release)."""
    normalise_query: bool = False
    """L2-normalise the query (release: no, so that its norm acts as a temperature)."""
    identity_init: bool = True
    """Linear layers start as the identity (release); else torch's default."""
    bias: bool = True
    """Trainable biases, zero at the start (release)."""
    seed: int = 0
    """Seed of the predictors' training, on top of the run's: the backbone stays as it is."""
    precision: Precision = "bf16"
    """Autocast type over float32 master weights."""
    log_every: int = 500
    """Steps between lines in TensorBoard and metrics.jsonl."""
    checkpoint_every: int = 5000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        _at_least(self, "learn", 1, "steps", "log_every", "checkpoint_every")
        _at_least(self, "learn", 0, "lr", "momentum", "weight_decay", "seed")
        _require(0 <= self.p_mean <= 1, "learn.p_mean", self.p_mean, "in [0, 1]")
        ok = bool(self.methods) and set(self.methods) <= set(PREDICTORS)
        _require(ok, "learn.methods", self.methods, f"some of {', '.join(PREDICTORS)}")


@dataclass(kw_only=True)
class EvaluateConfig:
    """All classes scored together, over seeded draws of support images."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Rows of the table: nn, mean, phi1, phi2, phi2star."""
    shots: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Support images a novel class (paper: 1, 2, 3)."""
    draws: int = 100
    """Seeded draws of the support set (the paper shows one); at least 20 for an interval worth showing."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self) -> None:
        _at_least(self, "evaluate", 2, "draws")
        _require(0 <= self.seed < 2**32, "evaluate.seed", self.seed, "in [0, 2^32)")
        ok = bool(self.shots) and min(self.shots) >= 1
        _require(ok, "evaluate.shots", self.shots, "positive numbers")
        ok = len(set(self.shots)) == len(self.shots)
        _require(ok, "evaluate.shots", self.shots, "different numbers")
        ok = bool(self.methods) and set(self.methods) <= set(METHODS) and len(set(self.methods)) == len(self.methods)
        _require(ok, "evaluate.methods", self.methods, f"some of {', '.join(METHODS)}, each once")


@dataclass(kw_only=True)
class Config:
    """One run: images to table."""

    name: str = "run"
    """Name of the run: it lives in RUNS/NAME, and starting it again continues it."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    seed: int = 0
    """Seed of weights, order, augmentation and predictor training."""
    pack: PackConfig | None = None
    """Where given, ``run`` packs first when the shards are not there."""
    max_minutes: float | None = None
    """Stop cleanly after so many minutes, as on a signal; the same command continues. Under SLURM the
    job's own end is a deadline too."""
    data: DataConfig = field(default_factory=DataConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    learn: LearnConfig = field(default_factory=LearnConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def __post_init__(self) -> None:
        for method in self.evaluate.methods:
            ok = method not in PREDICTORS or method in self.learn.methods
            _require(ok, "evaluate.methods", method, f"in learn.methods ({', '.join(self.learn.methods)}) too")
        ok = bool(self.name) and "/" not in self.name and self.name not in (".", "..")
        _require(ok, "name", self.name, "a folder name")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2^32)")  # NumPy's limit
        ok = self.data.ramp_from is None or self.data.ramp_epochs[1] < self.pretrain.epochs
        _require(ok, "data.ramp_epochs", self.data.ramp_epochs, "over before pretrain.epochs")
        ok = self.max_minutes is None or self.max_minutes > 0
        _require(ok, "max_minutes", self.max_minutes, "> 0")

    @property
    def run_dir(self) -> Path:
        return self.runs / self.name


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON types (paths as strings, tuples as lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return plain


def digest(value: Any) -> str:
    """Hash of a JSON value, independent of key order: 16 hex digits of sha256."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def configs_dir() -> Path:
    """The folder of packaged configurations: beside the package in a checkout, inside it in a wheel."""
    inside = Path(__file__).parent / "configs"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "configs"
