"""Configuration of the backbone's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dist_train.config.backbone import BackboneConfig
from dist_train.config.checks import at_least, require

Precision = Literal["bf16", "fp16", "tf32", "fp32"]
# bf16, fp16: autocast over float32 weights. tf32: float32, with products that GPUs compute from factors of 10 bits of
# mantissa; the same as fp32 on CPUs. fp32: exact products.
# torchvision's ResNets, and two networks of the few-shot literature: four convolutions (Vinyals et al. 2016) and
# ResNet-10 (one basic block a stage; Hariharan & Girshick 2017). torchvision, which lists its own, is slow to import.
MODELS = (
    *("conv4", "resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
Strategy = Literal["ddp", "zero0", "zero1", "zero2", "zero3"]


@dataclass(kw_only=True)
class PretrainConfig:
    """Configure the training of the backbone on the base classes.

    Defaults: torchvision's 90-epoch ResNet reference with warm-up and the linear rule (Goyal et al. 2017), cosine decay
    and label smoothing (He et al. 2019).
    """

    model: str = "resnet50"
    """Name of any torchvision ResNet, resnet10 or conv4 (paper: ResNet-50)."""
    small_stem: bool = False
    """Take a 3x3 stem without max-pooling, for images of about 32 pixels (He et al. 2016, section 4.2)."""
    classifier: Literal["linear", "cosine"] = "linear"
    """linear: rows and biases (paper). cosine: logits are 20 times the cosine of activation and row (Kornblith et al.
    2021); once trained, the rows are stored as those of a linear classifier with the same order of classes."""
    init: BackboneConfig | None = None
    """A trained network to start from, in place of ``model`` (fine-tuning). Of its classifier, the rows of base classes
    are taken; other rows start at zero, as in Vision Transformer (Dosovitskiy et al. 2021)."""
    freeze: str | None = None
    """With init: the last layer, of those from the images to the classifier, that stays as it is, with its batch norm's
    statistics; an unknown name lists them."""
    layer_decay: float = 1.0
    """With init: factor of the learning rate from each layer to the layer before it. BEiT takes 0.65 to 0.85 (Bao et
    al. 2022)."""
    head_lr_scale: float = 1.0
    """With init: the classifier's learning rate, as a multiple of ``lr``."""
    epochs: float = 90
    """Passes over the base images."""
    global_batch: int = 1024
    """Images per optimiser step, over all ranks and accumulation steps."""
    accumulate: int = 1
    """Forward/backward passes per optimiser step."""
    lr: float = 0.4
    """Peak learning rate: 0.1 per 256 images (Goyal et al. 2017), for the whole global batch."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """none: lr is for the whole global batch. linear, sqrt: lr is for 256 images, and is multiplied by
    global_batch / 256 (Goyal et al. 2017) or by its square root."""
    schedule: Literal["cosine", "linear", "step"] = "cosine"
    """After the warm-up: half a cosine to zero, a straight line to zero, or a tenth of the rate at each milestone."""
    milestones: list[float] = field(default_factory=lambda: [30, 60, 80])
    """Epochs at which schedule step takes a tenth (Goyal et al. 2017)."""
    optimizer: Literal["sgd", "lamb", "lars"] = "sgd"
    """sgd has Nesterov's momentum; lamb and lars (timm's) adapt the rate of each layer."""
    momentum: float = 0.9
    """Momentum of sgd and lars."""
    weight_decay: float = 1e-4
    """Weight decay of convolutions and of the classifier; norms and biases have none."""
    loss: Literal["ce", "bce"] = "ce"
    """ce: cross entropy. bce: binary cross entropy of each class (Wightman et al. 2021)."""
    bce_threshold: float = 0.2
    """bce: the target of a class is 1 where its share of a mixed image is larger than this, else 0."""
    label_smoothing: float = 0.1
    """ce: share of the target that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of the beta distribution of mixup; 0 = no mixup. With cutmix too, each batch draws one of the two."""
    cutmix: float = 0.0
    """Alpha of the beta distribution of cutmix; 0 = no cutmix."""
    stochastic_depth: float = 0.0
    """Probability that the last residual branch is left out, growing from 0 at the first (Huang et al. 2016)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is evaluated and passed on; 0 = no average."""
    warmup_epochs: float = 5
    """Epochs of linear warm-up."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 = not clipped."""
    strategy: Strategy = "ddp"
    """How ranks train together: PyTorch's DDP, or DeepSpeed's ZeRO of stage 0 to 3. Checkpoints are the
    same for all, so a run may change the strategy on the way."""
    offload: bool = False
    """Keep the optimiser's state on the CPU, and make its step there (zero1 to zero3)."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """Further options of DeepSpeed's configuration, as its documentation names them."""
    compile: bool = False
    """Train through torch.compile (strategy ddp)."""
    precision: Precision = "bf16"
    """Precision of products and activations, over float32 master weights. bf16: autocast. fp16: autocast with a scaler
    of gradients. tf32: float32 with products that GPUs round. fp32: exact."""
    channels_last: bool = True
    """Memory format of the convolutions (NHWC is the fast one on GPUs and on oneDNN CPUs)."""
    sync_batchnorm: bool = False
    """Take batch norm's statistics over all ranks (GPUs only), so that the training does not depend on the
    number of ranks; otherwise each rank normalises by its own part of the batch."""
    checkpoint_every: int = 1000
    """Optimiser steps between checkpoints."""
    keep: int = 2
    """Number of newest checkpoints to keep; the best one is kept in addition."""
    keep_every: int = 0
    """Keep checkpoints at multiples of this many steps for good; 0 = none."""
    log_every: int = 20
    """Optimiser steps between lines in TensorBoard and metrics.jsonl."""

    def __post_init__(self) -> None:
        self._check_init()
        require(self.model in MODELS, "pretrain.model", self.model, f"one of {', '.join(MODELS)}")
        names = ("global_batch", "accumulate", "checkpoint_every", "log_every", "keep")
        at_least(self, "pretrain", 1, *names)
        at_least(self, "pretrain", 0, "keep_every", "lr", "momentum", "weight_decay", "warmup_epochs")
        require(self.epochs > 0, "pretrain.epochs", self.epochs, "> 0")
        ok = self.warmup_epochs < self.epochs
        require(ok, "pretrain.warmup_epochs", self.warmup_epochs, f"< pretrain.epochs={self.epochs:g}")
        ok = 0 <= self.label_smoothing < 1
        require(ok, "pretrain.label_smoothing", self.label_smoothing, "in [0, 1)")
        at_least(self, "pretrain", 0, "clip_norm", "mixup", "cutmix")
        for name in ("stochastic_depth", "ema", "bce_threshold"):
            require(0 <= getattr(self, name) < 1, f"pretrain.{name}", getattr(self, name), "in [0, 1)")
        for key in ("small_stem", "stochastic_depth"):
            ok = self.model != "conv4" or not getattr(self, key)
            require(ok, f"pretrain.{key}", getattr(self, key), "left out with pretrain.model=conv4, which is no ResNet")
        ok = self.loss == "ce" or self.label_smoothing == 0
        require(
            ok, "pretrain.label_smoothing", self.label_smoothing, "0 with pretrain.loss=bce, whose targets are 0 or 1"
        )
        require(
            self.bce_threshold < 0.5, "pretrain.bce_threshold", self.bce_threshold, "in [0, 0.5): half a mix is 0.5"
        )
        ok = self.schedule != "step" or any(mark < self.epochs for mark in self.milestones)
        require(ok, "pretrain.milestones", self.milestones, f"below pretrain.epochs={self.epochs:g}, one at least")
        ok = self.milestones == sorted(self.milestones) and all(mark > 0 for mark in self.milestones)
        require(ok, "pretrain.milestones", self.milestones, "epochs in order")
        ok = self.optimizer == "sgd" or self.strategy in ("ddp", "zero0")
        require(ok, "pretrain.optimizer", self.optimizer, f"sgd with {self.strategy}, which cuts layers into pieces")
        ok = not self.ema or self.strategy != "zero3"
        require(ok, "pretrain.ema", self.ema, "0 with pretrain.strategy=zero3, where weights are in pieces")
        ok = not self.offload or self.strategy in ("zero1", "zero2", "zero3")
        require(ok, "pretrain.offload", self.offload, "false unless pretrain.strategy is zero1, zero2 or zero3")
        ok = not self.deepspeed or self.strategy != "ddp"
        require(ok, "pretrain.deepspeed", self.deepspeed, "empty unless pretrain.strategy is zero0 to zero3")
        ok = not self.compile or self.strategy == "ddp"
        require(ok, "pretrain.compile", self.compile, "false unless pretrain.strategy is ddp")
        ok = self.global_batch % self.accumulate == 0
        require(ok, "pretrain.global_batch", self.global_batch, f"a multiple of pretrain.accumulate={self.accumulate}")

    def _check_init(self) -> None:
        """Check the keys that go, or do not go, with ``init``."""
        untrained, trained = (
            ("model", "small_stem", "classifier", "stochastic_depth"),
            ("freeze", "layer_decay", "head_lr_scale"),
        )
        for key in untrained if self.init else trained:
            ok = getattr(self, key) == PretrainConfig.__dataclass_fields__[key].default
            wanted = "left out where pretrain.init names a network" if self.init else "left out without pretrain.init"
            require(ok, f"pretrain.{key}", getattr(self, key), wanted)
        require(0 < self.layer_decay <= 1, "pretrain.layer_decay", self.layer_decay, "in (0, 1]")
        require(self.head_lr_scale > 0, "pretrain.head_lr_scale", self.head_lr_scale, "> 0")
