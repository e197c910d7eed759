"""Make the strategy that a configuration names."""

from __future__ import annotations

import torch
from torch import nn

from dist_train.config import PretrainConfig
from dist_train.distributed.context import Context
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.ddp import DataParallel
from dist_train.training.strategies.strategy import Strategy


def make_strategy(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: MixedPrecision,
    config: PretrainConfig,
    context: Context,
) -> Strategy:
    """Return the strategy that ``pretrain.strategy`` names.

    Raises:
        UserError: DeepSpeed does not take the options.
    """
    strategy: Strategy
    if config.strategy == "ddp":
        strategy = DataParallel(model, optimizer, precision, context, config.channels_last, config.compile)
    else:
        from dist_train.training.strategies.deepspeed import DeepSpeed

        strategy = DeepSpeed(model, optimizer, precision, config, context)
    if config.ema:
        strategy.keep_average(config.ema)
    return strategy
