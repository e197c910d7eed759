"""Keys without a meaning: those of what a trained network, or features from elsewhere, take the place of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dist_train.config.backbone import BackboneConfig, in_section
from dist_train.config.checks import require
from dist_train.config.data import TRAINING_CROPS, DataConfig
from dist_train.config.fewshot import ExtractConfig
from dist_train.config.networks import NetworksConfig
from dist_train.config.pretrain import PretrainConfig

_SECTIONS: dict[str, type[Any]] = {
    "data": DataConfig,
    "pretrain": PretrainConfig,
    "extract": ExtractConfig,
    "networks": NetworksConfig,
}


def check_meaning(values: Any) -> None:
    """Check that no key is given that another one leaves without a meaning.

    Args:
        values: a ``Config``; or its values by the same names, whose sections have not been made of them yet, so that
            such a key is named before its value is judged.

    Raises:
        ValueError: such a key is given, or ``pretrain.init`` has a wrong value; it is named.
    """
    init = values.pretrain.init
    if values.features is not None:
        wanted = "left out beside features: there are no images"
        require(values.pack is None, "pack", "...", wanted)
        _no_network(values.backbone, "backbone", wanted)
        for section, kind in _SECTIONS.items():
            taken = ("split", "holdout") if section == "data" else ()
            _left_out(values, section, [key for key in kind.__dataclass_fields__ if key not in taken], wanted)
    elif values.backbone is not None:
        wanted = (
            "left out where backbone names a trained network: nothing is trained, the stage pretrain takes it in as it "
            "is; to train it further, name it as pretrain.init"
        )
        _left_out(values, "pretrain", PretrainConfig.__dataclass_fields__, wanted)
        _left_out(values, "data", TRAINING_CROPS, wanted)
    elif init is not None:
        _check_init(init)
    if trained := "backbone" if values.backbone is not None else "pretrain.init" if init is not None else "":
        wanted = f"left out: the preprocessing of the trained network counts; {trained}.size changes its size"
        _left_out(values, "data", ("eval_resize", "eval_size"), wanted)


def _left_out(values: Any, section: str, keys: Iterable[str], wanted: str) -> None:
    """Check that keys of a section have their defaults."""
    given, default = getattr(values, section), _SECTIONS[section]()
    for key in keys:
        if f"{section}.{key}" == "pretrain.init":
            _no_network(given.init, "pretrain.init", wanted)
        else:
            require(getattr(given, key) == getattr(default, key), f"{section}.{key}", getattr(given, key), wanted)


def _no_network(given: Any, section: str, wanted: str) -> None:
    """Check that a section does not name a trained network."""
    if given is not None:
        require(False, f"{section}.source", given.source, wanted)


def _check_init(init: Any) -> None:
    """Check the values of ``pretrain.init`` under its own name: its dataclass calls itself ``backbone``."""
    try:
        BackboneConfig(**{key: getattr(init, key) for key in BackboneConfig.__dataclass_fields__})
    except ValueError as error:
        raise ValueError(in_section(str(error), "pretrain.init")) from None
