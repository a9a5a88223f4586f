"""What README.md and the pages in docs/ show as code does what it says there."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable, Iterable
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
from support.records import array_record
from support.small_model import MODEL as OTHER_MODEL
from support.small_model import good_client
from torch.utils.data import DataLoader, TensorDataset

from fedpw_flwr import FedPW, MissingLossError
from fedpw_flwr.fairness import fairness_report
from fedpw_flwr.lab.config.command_line import readable_words
from fedpw_flwr.lab.config.configuration import compose_configuration, config_folder
from fedpw_flwr.lab.runs.run_folder import RunFolder

REPOSITORY = config_folder().parent
TESTS = REPOSITORY / "tests"
# Those of docs/projects/ have tests of their own, which run them whole.
PAGES = {
    str(path.relative_to(REPOSITORY)): path.read_text(encoding="utf-8")
    for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
}
RUN_BY = {
    "fedpw": "end_to_end/test_default_run.py",
    "fedpw -m": "end_to_end/test_other_ways_to_run.py",
    "fedpw resume=": "end_to_end/test_same_bits.py",
    "fedpw runtime.profile=true": "end_to_end/test_profile.py",
    "fedpw tracking=": "observers/test_trackers.py",
    "fedpw stop.": "observers/test_early_stopping.py",
    "fedpw-compare": "lab/compare/test_compare_command.py",
    "fedpw-evaluate": "lab/test_evaluate.py",
    "flwr run . --stream": "end_to_end/test_other_ways_to_run.py",
    "make": "../Makefile",
    "eval $(fedpw -sc install=bash)": "test_documentation.py",
    "export": "",
}
"""Where commands run that begin so; those of `fedpw` are read by hydra here, too."""


def blocks(kind: str, pages: Iterable[str] = PAGES.values()) -> list[str]:
    """The blocks of a kind, without those that a page says are not run."""
    found = r"(<!-- not run: [^>]+ -->\n)?```" + kind + r"\n(.*?)```"
    return [code for page in pages for said, code in re.findall(found, page, re.S) if not said]


def block(kind: str, word: str) -> str:
    """The only block of a kind that holds a word."""
    (found,) = (code for code in blocks(kind) if word in code)
    return found


def write_files(page: str, folder: Path) -> None:
    """Write the files that a page shows: the first line of their block is their name."""
    for code in blocks("(?:python|yaml)", [PAGES[page]]):
        named = re.match(r"# (\w\S+\.(?:py|yaml))\n", code)
        if named is not None:
            (folder / named[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / named[1]).write_text(code, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_by_a_test_and_its_settings_exist(page: str, tmp_path: Path) -> None:
    write_files(page, tmp_path)
    for line in "".join(blocks("bash", [PAGES[page]])).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].startswith("PYTHONPATH="):
            words.pop(0)
        command = " ".join(words)
        known = [begin for begin in RUN_BY if command.startswith(begin)]
        assert known or not words, f"{command!r} of {page}: name the test that runs it, or mark it"
        assert all((TESTS / RUN_BY[begin]).exists() for begin in known)
        if words[:1] == ["fedpw"]:
            compose_as_typed(words[1:], tmp_path)
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), re.M)


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


@pytest.mark.long
@pytest.mark.parametrize("what", ["strategy=sqrt_fedavg", "dataset=wine"])
def test_a_baseline_and_a_dataset_are_added_as_the_page_shows(what: str, tmp_path: Path) -> None:
    write_files("docs/architecture.md", tmp_path)
    words = shlex.split(block("bash", what))
    assert words[:2] == ["PYTHONPATH=$PWD", "fedpw"]
    typed(*words[1:], "hydra.run.dir=run", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert [record.round for record in RunFolder(tmp_path / "run").read_rounds()] == [0, 1, 2]


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
