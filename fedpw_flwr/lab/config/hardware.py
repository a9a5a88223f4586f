"""What this machine can do, told within milliseconds: nothing of PyTorch or Ray is imported."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_AMD_DRIVER = Path("/dev/kfd")
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def count_gpus() -> int | None:
    """Return how many GPUs of NVIDIA's Ray will find here; None where that cannot be told.

    As Ray does, it asks the driver, and counts no more than ``CUDA_VISIBLE_DEVICES`` lists.
    """
    if not sys.platform.startswith("linux") or _AMD_DRIVER.exists():
        return None
    there = _count_of_driver()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return there
    listed = [] if visible in ("", "-1", "NoDevFiles") else visible.split(",")
    return min(there, len(listed))


def _count_of_driver() -> int:
    count = ctypes.c_uint(0)
    try:
        driver = ctypes.CDLL("libnvidia-ml.so.1")
        if driver.nvmlInit_v2() != 0:
            return 0
        driver.nvmlDeviceGetCount_v2(ctypes.byref(count))
        driver.nvmlShutdown()
    except (OSError, AttributeError):
        # No such driver.
        return 0
    return count.value


def multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Return whether the processor has instructions for bfloat16; None where that cannot be told.

    `cpuinfo` is Linux's description of the processor.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, flags = line.partition(":")
        # So they are called on x86 and on ARM.
        if name.strip() in ("flags", "Features"):
            return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
    return None
