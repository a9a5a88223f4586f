from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

STEPS = """
import json
import resource
import torch
from fedpw_flwr.lab.training.memory import keep_freed_memory

def pages_of_steps():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        activations = [torch.ones(4_000_000) for _ in range(4)]
        del activations
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
pages_of_steps()
usual = pages_of_steps()
agreed = keep_freed_memory()
pages_of_steps()
print(json.dumps([usual, agreed, pages_of_steps()]))
"""

GLIBC = platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told to keep freed memory")
def test_a_step_uses_the_memory_that_the_one_before_freed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, timeout=120, check=True
    )
    usual, agreed, kept = json.loads(done.stdout)
    assert agreed
    # How much the C library gives back by itself depends on where its blocks happen to lie.
    assert kept <= usual
    assert kept < 100
