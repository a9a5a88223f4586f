"""Who holds what: counted from the clients' images, and kept with the run."""

from __future__ import annotations

from pathlib import Path

import torch

from fedpw_flwr.lab.data.examples import ImageSet
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.run_folder import RunFolder

HOLDINGS = Holdings(
    [ClientHolding("ward", [2, 0, 1], [0, 1, 0]), ClientHolding("clinic", [0, 3, 0], [0, 0, 0])]
)


def images(*labels: int) -> ImageSet:
    return ImageSet(torch.zeros((len(labels), 1, 2, 2), dtype=torch.uint8), torch.tensor(labels))


def test_images_are_counted_by_class() -> None:
    shares = [
        ClientShare(0, "ward", train=images(0, 2, 0), test=images(1)),
        ClientShare(1, "clinic", train=images(1, 1, 1)),
    ]
    assert Holdings.of_shares(shares, num_classes=3) == HOLDINGS


def test_a_domain_is_scarce_where_a_usual_client_has_fewer_images_than_classes() -> None:
    def held(domain: str, *counts: int) -> list[ClientHolding]:
        return [ClientHolding(domain, [count, 0, 0], [9, 9, 9]) for count in counts]

    clients = [*held("ward", 1, 2, 2), *held("clinic", 1, 3, 50), *held("home", 3)]
    assert Holdings(clients).scarce() == {"ward": 2}
    assert Holdings([]).scarce() == {}


def test_holdings_come_back_from_a_run_s_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start()
    assert folder.read_holdings() is None
    folder.write_holdings(HOLDINGS)
    assert folder.read_holdings() == HOLDINGS
