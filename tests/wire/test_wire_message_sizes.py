"""Packed uploads are as small as they have to be, weighed as Flower sends them."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg
from message_sizes import measure_sizes
from server_step import fedpw


def test_packed_uploads_of_the_papers_network_are_as_small_as_promised() -> None:
    plain = measure_sizes(FedAvg(fraction_evaluate=0.0), 64)
    float32 = measure_sizes(fedpw("packed float32", avg_drop_rate=0.3), 64)
    float16 = measure_sizes(fedpw("packed float16", avg_drop_rate=0.3), 64)
    assert float32.up <= 0.75 * plain.up
    assert float16.up <= 0.40 * plain.up
    # What consensus costs on the way down: a bit for each entry of 32 bits.
    for sizes in (float32, float16):
        assert plain.down < sizes.down <= 1.035 * plain.down
