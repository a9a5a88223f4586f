"""Memory that training frees stays with the process, for the next step.

The C library hands large freed blocks back to the system, and a step of training frees all its
activations: the next one gets them anew, page by page and zeroed. On a CPU that can take a sixth of
the time of a step. The price is that the process keeps the memory of its largest step.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

# Names of glibc's malloc.h, and sizes above every activation; older versions take at most 32 MiB.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK = 1 << 30
_LARGEST_BLOCK_OF_OLD = 32 << 20
_KEPT = 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Ask the C library to keep up to 1 GiB of freed memory, once a process.

    Returns whether it agreed: only glibc knows how, elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    agreed = mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK) or mallopt(
        _M_MMAP_THRESHOLD, _LARGEST_BLOCK_OF_OLD
    )
    return bool(agreed and mallopt(_M_TRIM_THRESHOLD, _KEPT))
