"""What README.md shows as code does what it says there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam
from support.grid import ClientsGrid, running
from support.records import array_record
from support.small_model import MODEL as OTHER_MODEL
from support.small_model import good_client
from torch.utils.data import DataLoader, TensorDataset

from fedpw_flwr import FedPW, MissingLossError

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def block(kind: str, word: str) -> str:
    """The only block of a kind that holds a word."""
    (found,) = (code for code in re.findall(rf"```{kind}\n(.*?)```", README, re.S) if word in code)
    return str(found)


IMAGES, LABELS = torch.arange(14.0).reshape(7, 2) / 14, torch.arange(7) % 2


def app_of_the_recipe(marks: str, model: torch.nn.Module) -> ClientApp:
    """The recipe's train function with its lines that begin with one of the marks."""
    lines = block("diff", "@app.train()").splitlines()
    code = "\n".join(line[1:] for line in lines if not line or line[0] in marks)
    app = ClientApp()
    exec(
        code,
        {
            **{"app": app, "model": model, "epochs": 2, "criterion": torch.nn.CrossEntropyLoss()},
            "optimizer": torch.optim.SGD(model.parameters(), 0.0),
            "trainloader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=3),
            **{"Message": Message, "Context": Context, "RecordDict": RecordDict},
            **{"ArrayRecord": ArrayRecord, "MetricRecord": MetricRecord},
        },
    )
    return app


def a_round(marks: str, model: torch.nn.Module, **options: Any) -> MetricRecord:
    app = app_of_the_recipe(marks, model)
    contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in (31, 32, 33)}
    grid = ClientsGrid({node: running(app, context) for node, context in contexts.items()})
    arrays = ArrayRecord(model.state_dict())
    result = FedPW(fraction_evaluate=0.0, **options).start(grid, arrays, num_rounds=1)
    return result.train_metrics_clientapp[1]


def test_the_recipes_lines_are_all_that_a_client_needs() -> None:
    """It reports the mean over examples, not over batches: of seven in threes one stands alone."""
    model = torch.nn.Linear(2, 2)
    metrics = a_round(" +", model)
    assert metrics["fedpw-quarantined"] == metrics["fedpw-failed"] == 0
    # The learning rate is 0, so the mean over training is the model's own loss.
    with torch.no_grad():
        expected = float(torch.nn.CrossEntropyLoss()(model(IMAGES), LABELS))
    assert metrics["fedpw-loss"] == pytest.approx([expected] * 3)


def test_without_them_the_error_says_what_is_missing() -> None:
    with pytest.raises(MissingLossError, match="train_loss"):
        a_round(" ", torch.nn.Linear(2, 2))


def test_another_name_is_given_to_the_strategy() -> None:
    with pytest.raises(MissingLossError, match="my_loss"):
        a_round(" +", torch.nn.Linear(2, 2), train_loss_key="my_loss")


@pytest.mark.parametrize("name", ["MyFedPW", "MyFedAdam"])
def test_the_subclass_leaves_out_and_reports_what_it_says(name: str) -> None:
    known: dict[str, Any] = {"FedPW": FedPW, "FedAdam": FedAdam, "BANNED": {72}}
    exec(block("python", "class MyFedPW"), known)
    build: Callable[..., FedPW] = known[name]
    strategy = build(fraction_evaluate=0.0)
    assert strategy.settings.beta == 0.5
    grid = ClientsGrid(dict.fromkeys([71, 72, 73, 74], good_client))
    result = strategy.start(grid, array_record(OTHER_MODEL), num_rounds=2)
    for record in result.train_metrics_clientapp.values():
        losses = record["fedpw-loss"]
        assert isinstance(losses, list)
        assert record["fedpw-client-id"] == [71, 73, 74]
        assert record["largest-loss"] == max(losses)


def test_the_papers_formulas_are_what_the_page_says() -> None:
    line = re.search(r"`(clip_weights=False,\s+max_loss_ratio=None, max_weight=None)`", README)
    assert line is not None
    options = eval(f"dict({line[1]})")
    assert set(options.values()) == {False, None}
    settings = FedPW(**options).settings
    assert (settings.clip_weights, settings.max_loss_ratio, settings.max_weight) == (
        *(False, None, None),
    )


def test_pictures_and_files_of_the_page_are_there() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README)
    assert len(links) > 10
    missing = [link for link in links if not (Path(__file__).parents[1] / link).exists()]
    assert missing == []
