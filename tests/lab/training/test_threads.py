"""Threads of a real Ray worker, and of a process that is none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from fedpw_flwr.lab.training.threads import use_assigned_cpus

WORKERS = """
import json
import ray
import torch
from fedpw_flwr.lab.training.threads import use_assigned_cpus

class Worker:
    def threads(self):
        return use_assigned_cpus(), torch.get_num_threads()

ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
here = torch.get_num_threads(), use_assigned_cpus()
environment = {"env_vars": {"OMP_NUM_THREADS": "2"}}
workers = [
    ray.remote(Worker).options(num_cpus=cpus, runtime_env=environment).remote()
    for cpus in (2, 1, 0.5)
]
seen = ray.get([worker.threads.remote() for worker in workers])
ray.shutdown()
print(json.dumps({"driver": here, "workers": seen}))
"""


def test_a_process_outside_ray_keeps_its_threads() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert use_assigned_cpus() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.long
def test_a_ray_worker_uses_the_processors_reserved_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["workers"] == [[2, 2], [1, 1], [1, 1]]
    assert seen["driver"][0] == seen["driver"][1]
