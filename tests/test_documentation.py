"""What README.md and the pages in docs/ show as code does what it says there."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.commands import typed
from support.grid import ClientsGrid, running
from support.pages import PAGES, REPOSITORY, block, blocks, commands, inline, shown, write_files
from support.records import array_record
from support.small_model import MODEL as OTHER_MODEL
from support.small_model import good_client
from torch.utils.data import DataLoader, TensorDataset

from fedpw_flwr import FedPW, MissingLossError
from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.config.command_line import readable_words
from fedpw_flwr.lab.config.configuration import compose_configuration

TESTS = REPOSITORY / "tests"
LANGUAGES = {"bash", "python", "diff", "yaml", "toml", "bibtex", ""}
COMMAND = (
    r"(\$ )?(\w+=\S* )*(fedpw|flwr|flower|make|pip|python|ray|export|kill|git|docker)(?=[ -]|$)"
)
INLINE = {
    "make": "../.ci/run",
    "flwr": "end_to_end/test_deployment.py",
    "fedpw ": "test_documentation.py",
    "fedpw-compare ": "end_to_end/test_pages.py",
    "pip install": "docs/test_project_pages.py",
    "git apply": "test_example_projects.py",
    "ray ": "end_to_end/test_ray_cluster.py",
    "python benchmarks/message_sizes": "benchmarks/test_benchmarks_run.py",
    "python benchmarks/memory_in_rounds": "benchmarks/test_memory_in_rounds.py",
    "python benchmarks/published": "benchmarks/test_published_results.py",
    # Hours of training; an upload to the world.
    "python benchmarks/privacy_cost": "",
    "git tag": "",
}
"""Where commands run that stand in sentences and begin so; those of `fedpw` are composed."""


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences_are_known(page: str) -> None:
    for code in inline(PAGES[page]):
        if re.match(COMMAND, code) and " " in code:
            found = [file for begin, file in INLINE.items() if code.startswith(begin)]
            assert found, f"{code!r} of {page}: name the test that runs it"
            assert (TESTS / found[0]).exists()


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_shown_as_such(page: str) -> None:
    """Only then `end_to_end/test_pages.py` and its like run them."""
    for language, code, _ in shown(PAGES[page]):
        assert language in LANGUAGES
        assert language or not [line for line in commands(code) if re.match(COMMAND, line)]


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist_also_of_commands_that_no_test_runs(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    lines = [line for code in blocks("bash", [PAGES[page]], marked=True) for line in commands(code)]
    for line in lines + inline(PAGES[page]):
        words = shlex.split(line, comments=True) if line.startswith("fedpw ") else []
        if words[1:] and not re.search(r"\.\.\.|=$|resume=", line):
            compose_as_typed(words[1:], tmp_path)


def compose_as_typed(words: list[str], folder: Path) -> None:
    """Let hydra read a command's overrides, of a sweep each run's."""
    words = [word for word in readable_words(words) if word not in ("-m", "--help")]
    if words[:1] == ["--config-dir"]:
        words[:2] = [f"hydra.searchpath=[file://{folder / words[1]}]"]
    if words[:1] == ["--cfg"]:
        words = []
    for job in BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)[
        0
    ]:
        compose_configuration("config", shlex.join(job))


def test_the_shell_completes_names_of_a_group(tmp_path: Path) -> None:
    installed = typed("fedpw", "-sc", "install=bash", folder=tmp_path).stdout
    assert "complete -o nospace -o default -F hydra_bash_completion" in installed
    known = typed("fedpw", "-sc", "query=bash", folder=tmp_path, COMP_LINE="fedpw strategy=fed")
    assert {"strategy=fedavg", "strategy=fedpw"} <= set(known.stdout.split())


def test_an_observer_is_told_as_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    known: dict[str, Any] = {}
    exec(block("python", "class WhoIsHeard"), known)
    grid = ClientsGrid(dict.fromkeys([71, 72, 73], good_client))
    strategy = FedPW(fraction_evaluate=0.0, observers=[known["WhoIsHeard"]()])
    strategy.start(grid, array_record(OTHER_MODEL), num_rounds=2)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in told] == ["1", "2"]
    assert {line[1] for line in told} <= {"71", "72", "73"}


def test_the_observers_of_the_page_can_be_given_to_the_strategy() -> None:
    given = {"FedPW": FedPW}
    for code in blocks("python", [PAGES["docs/watch.md"]]):
        exec(code, given)


def test_fairness_figures_have_the_names_of_the_page() -> None:
    exec(block("python", "evaluate_metrics_aggr_fn"), {"FedAvg": FedAvg})
    figures = {f"fairness-{name.replace('_', '-')}" for name in fairness_report([0.5]).to_dict()}
    named = re.findall(r"`(fairness-[a-z-]+(?:-5)?)`", PAGES["docs/fairness.md"])
    assert set(named) == {name for name in figures if not name.endswith(("-10", "-20"))}


def test_the_methods_figures_are_drawn_of_the_run_beside_them(tmp_path: Path) -> None:
    drawing = runpy.run_path(str(REPOSITORY / "docs" / "figures" / "draw.py"))
    drawn = {file.name for file in drawing["draw"](drawing["RUN"], tmp_path)}
    shown = re.findall(r"\(figures/(\S+)\)", PAGES["docs/method.md"])
    assert drawn == set(shown)
    assert len(shown) == 5


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
    shown = r"`(clip_weights=False,\s+max_loss_ratio=None, max_weight=None)`"
    line = re.search(shown, PAGES["docs/method.md"])
    assert line is not None
    options = eval(f"dict({line[1]})")
    assert set(options.values()) == {False, None}
    settings = FedPW(**options).settings
    assert (settings.clip_weights, settings.max_loss_ratio, settings.max_weight) == (
        *(False, None, None),
    )


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_files_that_a_page_names_are_there(page: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)[)#]", PAGES[page])
    assert [link for link in links if not ((REPOSITORY / page).parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 170
