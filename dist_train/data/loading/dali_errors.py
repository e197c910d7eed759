"""What DALI's errors mean: a damaged image, no memory left, or a GPU that failed.

DALI raises RuntimeError for all of them, without a code that Python could see, so this module distinguishes them by
their text, and no other module does. The texts are those of DALI 2.4.0 (``cuda_error.h``: CUDAError, CUDABadAlloc;
``image_decoder.h``) and of nvImageCodec 0.9 (``nvimgcodec.h``: nvimgcodecStatus_t).
"""

from __future__ import annotations

import re

import torch

_GPU_MEMORY = re.compile(
    r"CUDA allocation failed|Can't allocate \d+ bytes on device|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
    r"|nvImageCodec failure: '#(5|15)'"  # allocator failure, of nvImageCodec and of one of its decoders
)
_HOST_MEMORY = re.compile(r"Can't allocate \d+ bytes on host|bad_alloc")
_GPU = re.compile(
    r"CUDA (runtime|driver) API error|cudaError[A-Z]|CUDA_ERROR_|CUDA error"
    r"|nvImageCodec failure: '#21'"  # a CUDA call of a decoder
)


class PipelineError(RuntimeError):
    """Report that DALI's pipeline failed though no image is at fault: a crash, after which starting again continues."""


class DecodeError(PipelineError):
    """Report that a pipeline failed at a batch, most likely because of an image. Which image, if any, the CPU's decoder
    decides (``dali.decode_errors``). The pipeline is spent."""


def meaning(error: Exception) -> Exception:
    """Return the error that an error of a pipeline means, with a text of one line.

    Returns:
        torch.OutOfMemoryError or MemoryError: no memory is left on the GPU or on the machine. PipelineError: a call
        of CUDA failed. DecodeError: anything else.
    """
    text, words = str(error).split("encountered:")[-1], reason(error)
    if _GPU_MEMORY.search(text):
        return torch.OutOfMemoryError(f"DALI: {words}")
    if _HOST_MEMORY.search(text) or isinstance(error, MemoryError):
        return MemoryError(f"DALI: {words}")
    return PipelineError(f"DALI: {words}") if _GPU.search(text) else DecodeError(words)


def reason(error: Exception) -> str:
    """Return DALI's text after "encountered:" in one line, with words where DALI only gives a code."""
    text = str(error).split("encountered:")[-1]
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Current pipeline object" not in line]
    words = " ".join(lines[:2]) or "unknown error"
    if re.search(r"nvImageCodec failure: '#(2|4|14)'", words):  # a parser's: of the format
        return f"not an image format that DALI decodes ({words})"
    if re.search(r"nvImageCodec failure: '#(3|13|17|19)'", words):  # a parser's: of the bytes
        return f"damaged or truncated image data ({words})"
    if "Failed to decode sample" in words:
        return "damaged or truncated image data"
    return words[:200]
