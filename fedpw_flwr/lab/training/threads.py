"""As many threads as Ray reserved processors for this worker.

Ray sets ``OMP_NUM_THREADS`` for its workers only where the environment does not set it, and a
number meant for one process makes the workers of a simulation fight for the processors.
"""

from __future__ import annotations

import sys

import torch


def use_assigned_cpus() -> int:
    """Let PyTorch compute with the processors that Ray assigned to this worker, 1 at least.

    Outside a Ray worker (a SuperNode, a test) nothing is changed. Returns PyTorch's threads.
    """
    # A process in which nobody imported Ray is none of its workers, and need not have it.
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.get_actor_id() is not None:
            assigned = context.get_assigned_resources().get("CPU", 1.0)
            torch.set_num_threads(max(1, int(assigned)))
    return torch.get_num_threads()
