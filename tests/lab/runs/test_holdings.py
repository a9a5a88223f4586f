"""Who holds what: counted from the clients' pictures, kept with the run, and drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedpw_flwr.lab.data.images import ImageSet
from fedpw_flwr.lab.data.partition import ClientShare
from fedpw_flwr.lab.plots.partition_plot import partition_figure
from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.run_folder import RunFolder, RunFolderError


def _pictures(labels: list[int]) -> ImageSet:
    return ImageSet(
        torch.zeros((len(labels), 1, 2, 2), dtype=torch.uint8),
        torch.tensor(labels, dtype=torch.int64),
    )


HOLDINGS = Holdings(
    [ClientHolding("ward", [2, 0, 1], [0, 1, 0]), ClientHolding("clinic", [0, 3, 0], [0, 0, 0])]
)


def test_pictures_are_counted_by_class() -> None:
    shares = [
        ClientShare(0, "ward", train=_pictures([0, 2, 0]), test=_pictures([1])),
        ClientShare(1, "clinic", train=_pictures([1, 1, 1])),
    ]
    assert Holdings.of_shares(shares, num_classes=3) == HOLDINGS


def test_a_domain_is_scarce_where_a_usual_client_has_fewer_pictures_than_classes() -> None:
    def held(domain: str, *pictures: int) -> list[ClientHolding]:
        return [ClientHolding(domain, [count, 0, 0], [9, 9, 9]) for count in pictures]

    clients = [*held("ward", 1, 2, 2), *held("clinic", 1, 3, 50), *held("home", 3)]
    assert Holdings(clients).scarce() == {"ward": 2}
    assert Holdings([]).scarce() == {}


def test_holdings_come_back_from_a_run_s_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start()
    assert folder.read_holdings() is None
    folder.write_holdings(HOLDINGS)
    assert folder.read_holdings() == HOLDINGS


def test_damaged_holdings_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.start()
    (folder.path / "partition.json").write_text('{"clients": [{"domain": "ward"}]}')
    with pytest.raises(RunFolderError, match=r"partition\.json does not say what clients hold"):
        folder.read_holdings()


def test_every_cell_of_a_small_federation_says_its_count_and_domains_stand_over_their_clients() -> (
    None
):
    figure = partition_figure(HOLDINGS)
    written = sorted(text.get_text() for text in figure.axes[0].texts)
    assert written == ["1", "2", "3"]
    titles = [text.get_text() for text in figure.texts]
    assert "ward" in titles
    assert "clinic" in titles
    assert any("2 clients train on 3 to 3 pictures each, 6 in all" in text for text in titles)


def test_a_large_federation_is_drawn_without_numbers() -> None:
    figure = partition_figure(Holdings([ClientHolding("one", [5] * 10, [0] * 10)] * 100))
    assert not figure.axes[0].texts
    width, _ = figure.get_size_inches()
    assert width < 16
