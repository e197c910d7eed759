"""Memory that a process keeps for itself."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from dist_train.distributed.cpus import keep_freed_memory
if {keep}:
    keep_freed_memory()
def work():
    arrays = [np.ones(3 << 20) for _ in range(8)]  # 24 MiB each, 192 MiB in all
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc")
def test_freed_memory_is_used_again_without_the_kernel() -> None:
    # A page has 4 KiB, or 2 MiB where the kernel makes huge ones.
    assert faults(keep=False) > 400
    assert faults(keep=True) < 40
