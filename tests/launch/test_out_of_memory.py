"""Out of memory: which errors say so, and what the line offers."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dist_train.config import Config, ExtractConfig, PretrainConfig
from dist_train.distributed.context import Context
from dist_train.errors import UserError
from dist_train.stages import memory
from launch.out_of_memory import explain_out_of_memory, suggest_smaller, whose_memory


def accelerator_error(text: str, code: int) -> Exception:
    error = torch.AcceleratorError(text)
    error.error_code = code  # type: ignore[attr-defined]
    return error


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
        (accelerator_error("CUDA error: out of memory", 2), "GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "GPU"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "GPU"),
        (RuntimeError("NCCL error in: x.cpp:1\nLast error:\nCuda failure 2 'out of memory'"), "GPU"),
        (MemoryError(), "machine"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), "machine"),
        (RuntimeError("NCCL error in: x.cpp:1\nLast error:\nCuda failure 1 'invalid argument'"), None),
        (accelerator_error("CUDA error: uncorrectable ECC error encountered", 214), None),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), None),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), None),
    ],
)
def test_which_errors_say_that_memory_is_used_up(error: Exception, whose: str | None) -> None:
    assert whose_memory(error) == whose
    with pytest.raises(UserError if whose else type(error)), explain_out_of_memory(Config(), "learn", Context(), 10):
        raise error


@pytest.mark.parametrize(
    ("batch", "passes", "world", "wanted"),
    [
        (1024, 1, 8, "=1024 is 128 images a pass on each of 8 ranks; --pretrain.accumulate 2 --redo begins it again "
                     "with 64, or on 16 ranks it continues, with 64"),
        (1024, 4, 8, "=1024 is 32 images a pass on each of 8 ranks; --pretrain.accumulate 8 --redo begins it again "
                     "with 16, or on 16 ranks it continues, with 16"),
        (24, 2, 1, "is 12 images a pass on each of 1 rank; --pretrain.accumulate 4 --redo begins it again with 6, "
                   "or on 2 ranks it continues, with 6"),
        (90, 1, 2, "is 45 images a pass on each of 2 ranks; --pretrain.accumulate 3 --redo begins it again with 15, "
                   "or on 6 ranks it continues, with 15"),
        (6, 1, 2, "is 3 images a pass on each of 2 ranks; choose a smaller pretrain.global_batch"),
        (16, 4, 2, "is 2 images a pass on each of 2 ranks; choose a smaller pretrain.global_batch"),
    ],
)  # fmt: skip
def test_the_batch_that_is_offered_divides_and_is_at_most_half(
    batch: int, passes: int, world: int, wanted: str
) -> None:
    config = replace(Config(), pretrain=PretrainConfig(global_batch=batch, accumulate=passes))
    assert suggest_smaller(config, "pretrain", world).endswith(wanted)


@pytest.mark.parametrize(
    ("fits", "wanted"),
    [
        (100, "--pretrain.accumulate 2 --redo begins it again with 64, or on 16 ranks it continues, with 64"),
        (50, "--pretrain.accumulate 4 --redo begins it again with 32, or on 32 ranks it continues, with 32"),
        (3, "--pretrain.accumulate 64 --redo begins it again with 2, or on 512 ranks it continues, with 2"),
        (1, "choose a smaller pretrain.global_batch"),
    ],
)
def test_nothing_is_offered_that_does_not_fit(fits: int, wanted: str) -> None:
    config = replace(Config(), pretrain=PretrainConfig(global_batch=1024))
    assert suggest_smaller(config, "pretrain", 8, fits).endswith(f", about {fits} fit; {wanted}")


def test_torch_says_so_when_the_machine_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert whose_memory(caught.value) == "machine"


def test_the_batch_that_is_offered_fits_by_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Context(world=4, device=torch.device("cuda", 0))
    gpu.report_progress("pretrain: step 1")
    card = SimpleNamespace(total_memory=4e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    options = PretrainConfig(model="resnet18", global_batch=4096, precision="fp32")
    config = replace(Config(), pretrain=options)
    fits = memory.largest_batch(options, 100, config.data.train_size, 4, 4e9)
    assert 1 <= fits < 256, "or the test shows nothing"
    with pytest.raises(UserError) as caught, explain_out_of_memory(config, "pretrain", gpu, 100):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    offered = re.search(rf"is 1,024 images .*, about {fits} fit; --pretrain.accumulate (\d+) --redo", str(caught.value))
    ranks = re.search(r"or on (\d+) ranks it continues, with (\d+)", str(caught.value))
    assert ranks and int(ranks[2]) <= fits and int(ranks[1]) * int(ranks[2]) == 4096
    assert offered and 4096 // (4 * int(offered[1])) <= fits < 2 * 4096 // (4 * int(offered[1]))


def test_each_stage_names_a_key_or_a_thing_of_its_own() -> None:
    config = replace(Config(), extract=ExtractConfig(batch=256))
    assert "extract.batch=256" in suggest_smaller(config, "extract", 8) and "--extract.batch 128" in suggest_smaller(
        config, "extract", 8
    )
    assert "--extract.batch" not in suggest_smaller(replace(config, extract=ExtractConfig(batch=1)), "extract", 8)
    assert "activations" in suggest_smaller(config, "learn", 8) and "evaluate.methods" in suggest_smaller(
        config, "evaluate", 8
    )


def test_the_line_says_where_it_was_and_what_torch_says_first() -> None:
    context = Context()
    context.report_progress("extract base train: 3 blocks left")
    text = (
        "CUDA out of memory. Tried to allocate 392.00 MiB. GPU 0 has a total capacity of 79.11 GiB of which 45.25 MiB "
        "is free. Including non-PyTorch memory, this process has 79.06 GiB memory in use.\nOf the allocated memory ..."
    )
    with pytest.raises(UserError) as caught, explain_out_of_memory(Config(), "extract", context, 10):
        raise torch.OutOfMemoryError(text)
    line = str(caught.value)
    assert line.startswith(
        "extract: out of GPU memory at 'extract base train: 3 blocks left' (CUDA out of memory. Tried "
    )
    assert "45.25 MiB is free)" in line and "\n" not in line and "non-PyTorch" not in line
