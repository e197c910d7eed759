"""A run's backbone: what ``pretrain`` leaves in ``pretrain/final``, and the stages after it open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from dist_train.config import Config, Preprocessing, PretrainConfig
from dist_train.models.backbones import Backbone, Origin, Pretrained, build, open_pretrained
from dist_train.training import checkpoint


@dataclass(frozen=True)
class RunBackbone:
    """Hold a run's backbone.

    Attributes:
        network: its ``head`` has a row for each of ``classes``.
        classes: wnids of the run's base classes.
        preprocessing: what its images go through in evaluation.
        origin: where the weights, or those that the training started from, are from; None where the run trained them
            from scratch.
        has_head: whether ``network.head`` classifies. A trained network may lack a row for a base class; then
            ``extract`` makes all rows in closed form (fewshot/base_head.py).
    """

    network: Backbone
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    origin: Origin | None = None
    has_head: bool = True

    def save(self, config: Config, **facts: Any) -> None:
        """Write ``pretrain/final``."""
        state = {
            "architecture": self.network.architecture,
            "classes": self.classes,
            "preprocessing": asdict(self.preprocessing),
            "origin": asdict(self.origin) if self.origin else None,
            "has_head": self.has_head,
        }
        checkpoint.save(config.run_dir / "pretrain" / "final", {"model": self.network.state_dict()}, {**state, **facts})


def load_backbone(config: Config, device: torch.device) -> RunBackbone:
    """Return a run's finished backbone, frozen and in evaluation mode."""
    saved = checkpoint.load(config.run_dir / "pretrain" / "final", device)
    state = saved.state
    network = build(state["architecture"] if "architecture" in state else _architecture_before_0_3(state))
    network.load_state_dict(saved.tensors["model"])
    memory = torch.channels_last if config.pretrain.channels_last else torch.contiguous_format
    network.to(device, memory_format=memory)  # type: ignore[call-overload]
    return RunBackbone(
        network.eval().requires_grad_(False),
        tuple(state["classes"]),
        Preprocessing.from_json(state["preprocessing"]) if "preprocessing" in state else config.data.preprocessing,
        Origin.from_json(state["origin"]) if state.get("origin") else None,
        state.get("has_head", True),
    )


def architecture_of(config: PretrainConfig, classes: int) -> dict[str, Any]:
    """Return what ``backbones.build`` makes the network of that is trained with this configuration.

    Raises:
        UserError: the network that ``init`` names cannot be opened.
    """
    if config.init is None:
        own = ("small_stem", "classifier")
        return {"name": config.model, "num_classes": classes, **{key: getattr(config, key) for key in own}}
    return {**open_pretrained(config.init, "pretrain.init").backbone.architecture, "num_classes": classes}


def give_rows(opened: Pretrained, base: Sequence[str]) -> int:
    """Give a trained network a classifier of these classes (wnids): its own row for each that it knows, and zeros for
    the others.

    Returns:
        how many it knows.
    """
    network = opened.backbone
    number = {wnid: row for row, wnid in enumerate(opened.classes or ())}
    known = [place for place, wnid in enumerate(base) if wnid in number]
    rows = [number[base[place]] for place in known]
    own = network.head
    network.set_head(len(base))
    with torch.no_grad():
        for new, old in ((network.head.weight, own.weight), (network.head.bias, own.bias)):
            new.zero_()
            new[known] = old[rows]
    return len(known)


def _architecture_before_0_3(state: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": state["model"], "small_stem": state["small_stem"], "num_classes": len(state["classes"])}
