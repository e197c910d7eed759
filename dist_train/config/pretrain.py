"""The backbone's training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dist_train.config.checks import at_least, require

Precision = Literal["bf16", "fp16", "tf32", "fp32"]
# bf16, fp16: autocast over float32 weights. tf32: float32, whose products GPUs compute with factors of 10 bits of
# mantissa; on CPUs it is fp32. fp32: exact products.
# torchvision's ResNets, and the few-shot literature's ResNet-10 (one basic block a stage; Hariharan & Girshick
# 2017), which torchvision does not name. Named here: torchvision takes seconds to import.
MODELS = (
    *("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
Strategy = Literal["ddp", "zero0", "zero1", "zero2", "zero3"]


@dataclass(kw_only=True)
class PretrainConfig:
    """The backbone on the base classes. Defaults: torchvision's 90-epoch ResNet reference with
    Goyal et al. 2017 (warm-up, linear rule), cosine decay and label smoothing (He et al. 2019)."""

    model: str = "resnet50"
    """Any torchvision ResNet by name, or resnet10 (the paper: ResNet-50)."""
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
    """ce: share of the target spread over all classes."""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0 = none. With cutmix, one of both is drawn for each batch."""
    cutmix: float = 0.0
    """Alpha of cutmix's; 0 = none."""
    stochastic_depth: float = 0.0
    """Probability that the last residual branch is left out, growing from 0 at the first (Huang et al. 2016)."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then evaluated and goes on; 0 = none."""
    warmup_epochs: float = 5
    """Linear warm-up."""
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
    """Of products and activations, over float32 master weights: autocast to bf16, or to fp16 with a gradient scaler;
    tf32: float32 whose products GPUs round; fp32: exact."""
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
        require(self.model in MODELS, "pretrain.model", self.model, f"one of {', '.join(MODELS)}")
        names = ("global_batch", "accumulate", "checkpoint_every", "log_every", "keep")
        at_least(self, "pretrain", 1, *names)
        at_least(self, "pretrain", 0, "keep_every", "lr", "momentum", "weight_decay", "warmup_epochs")
        require(self.epochs > 0, "pretrain.epochs", self.epochs, "> 0")
        ok = self.warmup_epochs < self.epochs
        require(ok, "pretrain.warmup_epochs", self.warmup_epochs, "< pretrain.epochs")
        ok = 0 <= self.label_smoothing < 1
        require(ok, "pretrain.label_smoothing", self.label_smoothing, "in [0, 1)")
        at_least(self, "pretrain", 0, "clip_norm", "mixup", "cutmix")
        for name in ("stochastic_depth", "ema", "bce_threshold"):
            require(0 <= getattr(self, name) < 1, f"pretrain.{name}", getattr(self, name), "in [0, 1)")
        ok = self.loss == "ce" or self.label_smoothing == 0
        require(
            ok, "pretrain.label_smoothing", self.label_smoothing, "0 with pretrain.loss=bce, whose targets are 0 or 1"
        )
        require(
            self.bce_threshold < 0.5, "pretrain.bce_threshold", self.bce_threshold, "in [0, 0.5): half a mix is 0.5"
        )
        ok = self.schedule != "step" or any(mark < self.epochs for mark in self.milestones)
        require(ok, "pretrain.milestones", self.milestones, "below pretrain.epochs, one at least")
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
        require(ok, "pretrain.global_batch", self.global_batch, "a multiple of pretrain.accumulate")
