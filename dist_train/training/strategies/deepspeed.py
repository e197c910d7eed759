"""DeepSpeed's ZeRO as a strategy: the only module that imports DeepSpeed.

DeepSpeed partitions a float32 model; precision stays with ``MixedPrecision``. DeepSpeed's own bf16 and fp16 modes cast
batch norm's weights but not its statistics (0.19 then fails), and clip gradients at 1.0.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dist_train.config import PretrainConfig
from dist_train.distributed.context import Context, backends
from dist_train.errors import UserError
from dist_train.training.precision import MixedPrecision
from dist_train.training.strategies.strategy import Strategy

# Options that this program decides, with the key that does; in pretrain.deepspeed they are refused.
_OWNED = {
    "train_batch_size": "pretrain.global_batch",
    "train_micro_batch_size_per_gpu": "pretrain.global_batch and pretrain.accumulate",
    "gradient_accumulation_steps": "pretrain.accumulate",
    "managed_gradient_accumulation": "pretrain.accumulate",
    "gradient_clipping": "pretrain.clip_norm",
    "optimizer": "pretrain.optimizer",
    "scheduler": "pretrain.schedule",
    "fp16": "pretrain.precision",
    "bf16": "pretrain.precision",
    "bfloat16": "pretrain.precision",
    "amp": "pretrain.precision",
    "torch_autocast": "pretrain.precision",
    "data_types": "pretrain.precision",
    "checkpoint": "pretrain.checkpoint_every",
    "zero_allow_untested_optimizer": "pretrain.optimizer",
    "zero_force_ds_cpu_optimizer": "pretrain.offload",
    "zero_optimization.stage": "pretrain.strategy",
    "zero_optimization.offload_optimizer": "pretrain.offload",
    "zero_optimization.cpu_offload": "pretrain.offload",
}
# Options that are passed on (deepspeed.ai/docs/config-json): sections of options, and single values.
_SECTIONS = (
    "zero_optimization",
    "comms_logger",
    "flops_profiler",
    "tensorboard",
    "csv_monitor",
    "wandb",
    "aio",
    "timers",
)
_VALUES = (
    "communication_data_type", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
    "steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "disable_allgather",
)  # fmt: skip


class _Forward(nn.Module):
    """Call the model within our autocast; DeepSpeed's engine switches off an autocast around the engine."""

    def __init__(self, model: nn.Module, precision: MixedPrecision) -> None:
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.precision.autocast():
            logits: torch.Tensor = self.model(images)
        return logits


class DeepSpeed(Strategy):
    """Train by DeepSpeed's ZeRO (Rajbhandari et al. 2020). Stage 0 is as DDP, 1 divides the optimiser's state among
    ranks, 2 the gradients too, 3 the weights too.

    Raises:
        UserError: DeepSpeed is missing or does not take an option.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: MixedPrecision,
        config: PretrainConfig,
        context: Context,
    ) -> None:
        super().__init__(model, optimizer, precision, context)
        self.stage = int(config.strategy.removeprefix("zero"))
        options = deepspeed_options(config, context.world, sum(p.numel() for p in model.parameters()))
        deepspeed = _deepspeed(context)
        if not dist.is_initialized():  # a lone process
            store = dist.HashStore()  # type: ignore[attr-defined]  # documented, but not exported by name
            dist.init_process_group(backends(context.device), store=store, rank=0, world_size=1)
        # DeepSpeed replaces the groups' parameters by flat ones.
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        if self.stage > 0:
            optimizer.state.clear()
        # Evaluation must not depend on all ranks making the same number of forward passes.
        self._twin = copy.deepcopy(model) if self.stage == 3 else None
        try:
            self.module, self.engine_optimizer, *_ = deepspeed.initialize(
                model=_Forward(model, precision), optimizer=optimizer, config=options, dist_init_required=False
            )
        except (ValueError, TypeError, AssertionError, AttributeError, KeyError) as error:
            raise UserError(f"pretrain.deepspeed: {' '.join(str(error).split())[:300]}") from None
        self.engine: Any = self.module
        if self.stage > 0:
            self.loads_on = torch.device("cpu")  # checkpoints have whole tensors; each rank takes its piece
            self._clear_state()
        elif config.channels_last:
            # Not before: DeepSpeed's first broadcast views weights as bytes. Not from stage 1 on, where it lays weights
            # in a row; channels_last images alone give convolutions the format.
            model.to(memory_format=torch.channels_last)
            self.align()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.engine(images)
        return logits

    def backward(self, loss: torch.Tensor) -> None:
        scaler = self.precision.scaler
        if self.stage == 0:
            loss = self.precision.scale(loss)
        elif scaler.is_enabled():
            # DeepSpeed multiplies the loss by it, and divides the gradients in its step.
            self.engine_optimizer.override_loss_scale(scaler.get_scale())
        self.engine.backward(loss, scale_wrt_gas=False)

    def step(self, clip_norm: float, norm: bool) -> torch.Tensor | None:
        if self.stage == 0:
            total_norm = self._plain_step(norm)
        else:
            self.engine.step()
            self.precision.update_scale(self.engine_optimizer.overflow)
            total_norm = self.engine.get_global_grad_norm()
        self.update_average()
        return None if total_norm is None else torch.as_tensor(total_norm)

    def _plain_step(self, norm: bool) -> torch.Tensor | None:
        """Make a step of stage 0, where DeepSpeed has no optimiser around ours, and so nothing that knows of a
        scale."""
        scaled = self.precision.scaler.is_enabled()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if scaled:
            torch._foreach_mul_(gradients, 1 / self.precision.loss_scale)
        total_norm = torch.nn.utils.get_total_norm(gradients) if norm or scaled else None
        overflow = scaled and total_norm is not None and not bool(total_norm.isfinite())
        if overflow:
            self.engine.zero_grad()
        else:
            self.engine.step()
        self.precision.update_scale(overflow)
        return total_norm

    def whole(self) -> nn.Module:
        model = super().whole()
        if self._twin is None:
            return model
        full = _utils().safe_get_full_fp32_param
        with torch.no_grad():
            for copied, parameter in zip(self._twin.parameters(), model.parameters(), strict=True):
                if parameter.requires_grad:  # what is frozen is in the twin from the start
                    copied.copy_(full(parameter))
            for copied_buffer, buffer in zip(self._twin.buffers(), model.buffers(), strict=True):
                copied_buffer.copy_(buffer)
        return self._twin

    def _optimizer_state(self) -> dict[str, Any]:
        return super()._optimizer_state() if self.stage == 0 else self._full_state()

    def _load(self, model: dict[str, Any], optimizer: dict[str, Any]) -> None:
        if self.stage == 0:
            return super()._load(model, optimizer)
        self._load_model(model)
        self._clear_state(sorted({key for state in optimizer["state"].values() for key in state}))
        for index, parameter in enumerate(p for group in self._groups for p in group):
            for key, value in optimizer["state"].get(index, {}).items():
                self._set(parameter, value, key)

    # From stage 1 on, the optimiser's state lies in flat pieces on the ranks.

    def _flat(self) -> list[torch.Tensor]:
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        flat: list[torch.Tensor] = getattr(self.engine_optimizer, name)
        return flat

    def _clear_state(self, keys: list[str] | None = None) -> None:
        """Bring the optimiser to the state before its first step. DeepSpeed's stage 3 makes a step without gradients to
        allocate the memory, after which SGD's momentum holds the weight decay."""
        for flat in self._flat():
            state = self.optimizer.state[flat]
            for key in {*state, *(keys or ())}:
                state[key] = torch.zeros_like(flat, requires_grad=False)
            if not state:
                del self.optimizer.state[flat]
        self._link()

    def _link(self) -> None:
        """Link parameters to their optimiser state anew. DeepSpeed does so once, within its first step, when only the
        first group has a state; a checkpoint's state is loaded before that."""
        if self.stage < 3:
            self.engine_optimizer._hp_optimizer_states_linked = False
            self.engine_optimizer._lazy_init_hp_params_optimizer_state()

    def _full_state(self) -> dict[str, Any]:
        """Return what the bare optimiser's ``state_dict`` would be: whole tensors, by the parameter's number."""
        full = _utils().safe_get_full_optimizer_state
        self._link()
        groups, state, number = [], {}, 0
        for parameters, group, flat in zip(self._groups, self.optimizer.param_groups, self._flat(), strict=True):
            numbers = list(range(number, number + len(parameters)))
            number += len(parameters)
            groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": numbers})
            keys = [key for key, value in self.optimizer.state.get(flat, {}).items() if value.shape == flat.shape]
            for index, parameter in zip(numbers, parameters, strict=True):
                if keys:
                    # On the CPU: where ZeRO is needed, the device has no room for whole tensors.
                    state[index] = {key: full(parameter, key).cpu() for key in keys}
        return {"state": state, "param_groups": groups}

    def _set(self, parameter: nn.Parameter, value: torch.Tensor, key: str | None = None) -> None:
        """Copy this rank's piece of a whole tensor: to the optimiser's state named ``key``, or to the weight."""
        utils = _utils()
        value = value.to(self.context.device)
        if self.stage < 3:
            if key is None:
                utils.safe_set_full_fp32_param(parameter, value)
            else:
                utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = size * self.context.rank
        piece = torch.zeros(size, device=value.device)  # the last rank's piece may reach past the end
        values = value.flatten()[start : start + size]
        piece[: len(values)] = values
        if key is None:
            utils.safe_set_local_fp32_param(parameter, piece)
            parameter.ds_tensor.data.copy_(piece)  # type: ignore[attr-defined]
        else:
            utils.safe_set_local_optimizer_state(parameter, piece, key)

    def _load_model(self, saved: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, buffer in self.model.named_buffers():
                buffer.copy_(saved[name])
            for name, parameter in self.model.named_parameters():
                if self.stage < 3:
                    parameter.copy_(saved[name])
                self._set(parameter, saved[name])


def deepspeed_options(config: PretrainConfig, world: int, parameters: int = 0) -> dict[str, Any]:
    """Return DeepSpeed's configuration: our options, and those of ``pretrain.deepspeed``.

    Args:
        world: number of ranks.
        parameters: how many numbers the model has; 0 where that is not known yet.

    Raises:
        UserError: an option that another key decides, or that is not passed on.
    """
    passed_on = copy.deepcopy(config.deepspeed)
    for name in passed_on:
        if name in _SECTIONS and not isinstance(passed_on[name], dict):
            raise UserError(f"pretrain.deepspeed.{name}: holds options of its own, as 'key: value' lines")
    names = [*passed_on, *(f"zero_optimization.{key}" for key in passed_on.get("zero_optimization") or ())]
    for name in names:
        if name in _OWNED:
            raise UserError(f"pretrain.deepspeed.{name}: is decided by {_OWNED[name]}; set that")
    for name in passed_on:
        if name not in (*_SECTIONS, *_VALUES):
            near = difflib.get_close_matches(name, (*_SECTIONS, *_VALUES), 1, 0.5)
            hint = f"; did you mean {near[0]}?" if near else f": {', '.join((*_SECTIONS, *_VALUES))}"
            raise UserError(f"pretrain.deepspeed.{name}: not an option that is passed on{hint}")
    stage = int(config.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage, **(passed_on.pop("zero_optimization", None) or {})}
    if parameters:  # DeepSpeed allocates 2 GB, for 5e8 gradients (0.19, runtime/zero/config.py), whatever the model
        zero.setdefault("reduce_bucket_size", min(parameters, 500_000_000))
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": config.global_batch // world // config.accumulate,
        "gradient_accumulation_steps": config.accumulate,
        "gradient_clipping": config.clip_norm,  # DeepSpeed (0.19) takes 1.0 where it is missing
        "zero_allow_untested_optimizer": True,  # our parity tests are the test
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": 10**9,
        **passed_on,
    }


def _deepspeed(context: Context) -> Any:
    """Return DeepSpeed's module, imported with the settings that it reads from the environment."""
    if context.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed reads the number of its GPU here; under SLURM a task may see only its own GPU, as number 0.
    on_gpu = context.device.type == "cuda"
    os.environ["LOCAL_RANK"] = str(context.device.index if on_gpu else context.local_rank)
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)  # mpirun's: DeepSpeed refuses a number that differs
    try:
        deepspeed = importlib.import_module("deepspeed")
    except ImportError as error:
        raise UserError(f"DeepSpeed cannot be imported ({error}); pip install deepspeed") from None
    # An operator for small exchanges on CPUs, whose build needs a compiler and minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings(
            "ignore", message=f".*{name}. is deprecated"
        )  # DeepSpeed calls them, this program does not
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of options that are set on purpose
    return deepspeed


def _utils() -> Any:
    return importlib.import_module("deepspeed.utils")
