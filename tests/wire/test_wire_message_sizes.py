"""Packed uploads are as small as they have to be, weighed as Flower sends them."""

from __future__ import annotations

import message_sizes
import pytest
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity


def test_packed_uploads_of_the_papers_network_are_as_small_as_promised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, TaskIdentity.__dict__[name])
    plain = message_sizes.measure_sizes(FedAvg(fraction_evaluate=0.0), 64)
    float32 = message_sizes.measure_sizes(message_sizes.fedpw(0.3, "packed"), 64)
    float16 = message_sizes.measure_sizes(message_sizes.fedpw(0.3, "packed", "float16"), 64)
    assert float32.up <= 0.75 * plain.up
    assert float16.up <= 0.40 * plain.up
    # What consensus costs on the way down: a bit for each entry of 32 bits.
    for sizes in (float32, float16):
        assert plain.down < sizes.down <= 1.035 * plain.down
