"""The page of a run: its figures, who was left out and why, whatever clients write."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg
from support.browser import shown, text_and_elements
from support.grid import Client, ClientsGrid
from support.legacy_federation import INITIAL, NAMES, manager_of, plain_clients
from support.records import array_record
from support.small_model import MODEL, evaluate_reply, good_client, train_reply

from fedpw_flwr import FedPW, legacy
from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.checkpoint.rounds import run_rounds
from fedpw_flwr.observers import HtmlReport
from fedpw_flwr.report.page import Run, page
from fedpw_flwr.rounds.observers import Observer

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}"
GOOD = dict.fromkeys([11, 12, 13], good_client)


def raising(message: Message) -> list[Message]:
    raise RuntimeError(HOSTILE)


def lying(message: Message) -> list[Message]:
    """A client whose metrics have a hostile name; whose loss cannot be used every second round."""
    if message.metadata.message_type == "evaluate":
        return [evaluate_reply(message, **{HOSTILE: 1.0, "accuracy": 0.9, "num-examples": 5})]
    odd = message.content["config"]["server-round"] in (1, 3)
    return [train_reply(message, loss=math.nan if odd else 1.0, **{HOSTILE: 1.0})]


def run(
    folder: Path,
    clients: Mapping[int, Client],
    rounds: int = 3,
    observers: Callable[[HtmlReport], list[Observer]] = lambda report: [report],
    **options: Any,
) -> str:
    """The page that a FedPW run leaves in a folder."""
    report = HtmlReport(folder, title=f"Run of {HOSTILE}", groups={11: HOSTILE, 12: "north"})
    strategy = FedPW(observers=observers(report), min_available_nodes=2, **options)
    strategy.start(
        ClientsGrid(clients),
        array_record(MODEL),
        num_rounds=rounds,
        evaluate_fn=lambda server_round, _: MetricRecord(
            {"accuracy/north": 0.5 + server_round / 100, "accuracy/south": 0.25}
        ),
    )
    return report.path.read_text(encoding="utf-8")


def test_the_page_of_a_run_has_the_figures_of_its_last_round_and_no_markup_of_a_client(
    tmp_path: Path,
) -> None:
    clients = {**GOOD, 14: raising, 15: lying, 16: lambda message: []}
    text, elements = text_and_elements(run(tmp_path, clients))
    assert "Round 3 of 3" in text
    assert "Ended after round 3" in text
    # Mean, worst and spread of 53 % and 25 %.
    assert "Mean 39 % accuracy, round 3" in text
    assert "Worst 25 % south" in text
    assert "Spread 19.8" in text
    assert "north 53 %" in text
    for title in ("Aggregation weight", "Direction term p", "Loss term q", "Clients' accuracy"):
        assert title in text
    # Who, and why.
    assert "5 quarantined, 6 failed" in text
    assert f"train: node 14 failed: error 2: RuntimeError: {HOSTILE}" in text
    assert "node 15 quarantined: " in text
    assert "node 16 has no reply here: it did not answer" in text
    # What is text stays text; the one script holds data.
    assert elements.count("script") == 1
    assert "img" not in elements
    assert f"Run of {HOSTILE}" in text


def test_the_page_is_whole_after_every_round_and_reloads_itself_until_the_end(
    tmp_path: Path,
) -> None:
    pages: list[str] = []

    class Reader(Observer):
        def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
            pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))

    last = run(tmp_path, GOOD, observers=lambda report: [report, Reader()])
    for number, page_of_round in enumerate(pages):
        assert f"Round {number} of 3" in text_and_elements(page_of_round)[0]
        assert 'http-equiv="refresh"' in page_of_round
    assert len(pages) == 4
    assert "left" in text_and_elements(pages[2])[0]
    assert 'http-equiv="refresh"' not in last
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("come", [True, False])
def test_the_page_says_that_clients_are_waited_for(come: bool, tmp_path: Path) -> None:
    pages: list[str] = []

    class Late(ClientsGrid):
        def get_node_ids(self) -> list[int]:
            pages.append(report.path.read_text() if report.path.is_file() else "")
            return [11, 12, 13] if come and len(pages) > 2 else [11]

    report = HtmlReport(tmp_path)
    options: dict[str, Any] = {"wait_for_clients": 9 if come else 1.5, "when_missing": "continue"}
    strategy = FedPW(observers=[report], min_available_nodes=3, **options)
    strategy.start(Late(GOOD), array_record(MODEL), num_rounds=1)
    waiting = "Waiting for clients: 1 of 3 are there, for another"
    assert waiting not in pages[0]
    assert waiting in pages[1]
    assert waiting not in report.path.read_text()
    after_waiting = [text for text in pages[3:] if waiting in text]
    assert not after_waiting


def test_a_warning_before_waiting_is_of_the_round_in_which_it_was_heard(tmp_path: Path) -> None:
    looks: list[int] = []

    class LeftAfterTraining(ClientsGrid):
        def get_node_ids(self) -> list[int]:
            looks.append(1)
            return [11] if len(looks) == 2 else [11, 12, 14]

    report = HtmlReport(tmp_path)
    strategy = FedPW(observers=[report], min_available_nodes=3)
    strategy.start(LeftAfterTraining({**GOOD, 14: raising}), array_record(MODEL), num_rounds=1)
    assert "Waiting" not in report.path.read_text()
    assert {server_round for server_round, _ in report.run.notes} == {1}


def test_a_run_that_goes_on_keeps_what_its_page_had(tmp_path: Path) -> None:
    clients: dict[int, Client] = {**GOOD, 14: raising}
    saved: dict[str, Any] = {"checkpoint_dir": tmp_path / "checkpoints", "resume": True}
    run(tmp_path, clients, rounds=2, **saved)
    text, elements = text_and_elements(run(tmp_path, GOOD, rounds=3, **saved))
    assert "Ended after round 3" in text
    assert text.count(f"train: node 14 failed: error 2: RuntimeError: {HOSTILE}") == 2
    assert elements.count("script") == 1


def test_an_impostor_writes_no_figure_of_another_client(tmp_path: Path) -> None:
    def impostor(message: Message) -> list[Message]:
        if message.metadata.message_type != "evaluate":
            return [train_reply(message, loss=1.0)]
        reply = evaluate_reply(message, **{"accuracy": 0.01, "num-examples": 5})
        reply.content["identity"] = ConfigRecord({"client-id": 11})
        return [reply]

    report = HtmlReport(tmp_path)
    strategy = FedPW(observers=[report])
    strategy.start(ClientsGrid({**GOOD, 14: impostor}), array_record(MODEL), num_rounds=1)
    assert report.run.figures["clients' accuracy"].keys() == {"client_12", "client_13"}


def test_one_liar_does_not_change_the_unit_of_the_others() -> None:
    told = Run("a run", total=1)
    told.add(1, {"accuracy/a": 0.54, "accuracy/b": 0.56, "accuracy/liar": 1e308})
    text, _ = text_and_elements(page(told))
    assert "a 54 %" in text
    assert "b 56 %" in text


def test_figures_of_a_server_that_knows_no_domains_have_charts() -> None:
    told = Run("a run", total=1)
    for number in (0, 1):
        told.add(number, {"accuracy": 0.4 + number / 10, "loss": 2.0, "train/train_loss": 1.0})
        told.add(number, {"evaluate/accuracy": 0.3, "clients' accuracy/client_3": 0.3})
    assert shown_charts(told).count("As evaluated by the server.") == 2
    assert "accuracy 50 %" in shown_charts(told)
    # The clients' own have a chart already; under the legacy API they have none.
    assert "accuracy 30 %" not in shown_charts(told)
    told.figures.pop("clients' accuracy")
    assert "accuracy 30 %" in shown_charts(told)
    # What is computed of domains is not said twice.
    told.add(1, {"accuracy/north": 0.5})
    assert "As evaluated by the server." not in shown_charts(told)


def shown_charts(told: Run) -> str:
    return text_and_elements(page(told))[0]


def test_a_run_that_goes_on_without_its_page_tells_time_by_its_own_rounds(
    tmp_path: Path,
) -> None:
    saved: dict[str, Any] = {"checkpoint_dir": tmp_path / "checkpoints", "resume": True}
    run(tmp_path, GOOD, rounds=9, **saved)
    (tmp_path / "report.html").write_text('<script type="application/json">[]</script>')
    report = HtmlReport(tmp_path)
    strategy = FedPW(observers=[report], **saved)
    strategy.start(ClientsGrid(GOOD), array_record(MODEL), num_rounds=10)
    assert "Ended after round 10" in report.path.read_text(encoding="utf-8")
    assert len(report.run.seconds) == 1


def test_a_page_of_a_second_run_has_nothing_of_the_first(tmp_path: Path) -> None:
    report, pages = HtmlReport(tmp_path), list[str]()

    class Reader(Observer):
        def on_round_end(self, server_round: int, numbers: Mapping[str, float]) -> None:
            pages.append(report.path.read_text(encoding="utf-8"))

    strategy = FedPW(observers=[report, Reader()])
    for rounds in (3, 1):
        strategy.start(ClientsGrid(GOOD), array_record(MODEL), num_rounds=rounds)
    assert 'http-equiv="refresh"' in pages[-1]
    assert all(max(member) <= 1 for each in report.run.figures.values() for member in each.values())


def test_the_page_says_why_a_run_ended_early(tmp_path: Path) -> None:
    class Stop(Observer):
        def stop_reason(self) -> str | None:
            return f"enough {HOSTILE}"

    class Fail(Observer):
        error: BaseException = ConnectionError(HOSTILE)

        def on_round(self, server_round: int) -> None:
            raise self.error

    text, _ = text_and_elements(run(tmp_path, GOOD, observers=lambda report: [Stop(), report]))
    assert f"Stopped after round 0: enough {HOSTILE}" in text
    with pytest.raises(ConnectionError):
        run(tmp_path, GOOD, observers=lambda report: [Fail(), report])
    text, _ = text_and_elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"Failed after round 0, ConnectionError: {HOSTILE}" in text
    Fail.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, GOOD, observers=lambda report: [Fail(), report])
    text, _ = text_and_elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Interrupted after round 0" in text
    assert "Failed" not in text


def test_a_page_that_cannot_be_written_costs_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    report = HtmlReport(tmp_path / "file")
    FedPW(observers=[report]).start(ClientsGrid(GOOD), array_record(MODEL), num_rounds=1)
    assert "could not be written" in caplog.text


def test_flower_s_fedavg_and_the_legacy_strategy_have_a_page(tmp_path: Path) -> None:
    plain, old = (HtmlReport(tmp_path / name) for name in ("plain", "old"))
    run_rounds(
        *(FedAvg(), CheckpointStore(tmp_path), ClientsGrid(GOOD), array_record(MODEL)),
        num_rounds=1,
        observers=[plain],
    )
    text, _ = text_and_elements(plain.path.read_text(encoding="utf-8"))
    assert "Clients' accuracy" in text
    assert '"strategy": "FedAvg"' in text
    strategy = legacy.FedPW(initial_parameters=INITIAL, array_names=NAMES, observers=[old])
    manager = manager_of(plain_clients([11, 12, 13]))
    legacy.CheckpointedServer(client_manager=manager, strategy=strategy).fit(1, timeout=None)
    text, _ = text_and_elements(old.path.read_text(encoding="utf-8"))
    assert "Aggregation weight" in text


def made(clients: int, rounds: int, groups: int = 0) -> Run:
    """A run of made figures."""
    rng = np.random.default_rng(0)
    names = [f"{kind}/client_{k}" for kind in ("weight", "p", "q", "loss") for k in range(clients)]
    made_run = Run(
        "made", total=rounds, groups={k: f"g{k % groups}" for k in range(clients) if groups}
    )
    for number in range(rounds + 1):
        drawn = [name for name in names if rng.random() < 0.9]
        made_run.add(number, {name: float(rng.normal()) for name in drawn})
    return made_run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("clients", "groups"), [(1, 0), (8, 0), (30, 0), (30, 4), (30, 30)])
@pytest.mark.parametrize("rounds", [1, 400])
def test_any_number_of_clients_and_rounds_has_a_page(
    clients: int, groups: int, rounds: int
) -> None:
    text, elements = text_and_elements(page(made(clients, rounds, groups)))
    assert "nan" not in text
    assert elements.count("svg") == 4
    assert elements.count("path") < 4 * (clients + 30)


@pytest.mark.filterwarnings("error")
def test_figures_of_any_size_have_a_page() -> None:
    odd = {"weight/client_0": 0.0, "loss/client_0": 1e308, "loss/client_1": -1e308, "acc/a": 1e308}
    odd_run = Run("odd")
    for number in (0, 2):
        odd_run.add(number, odd)
    assert "Training loss" in page(odd_run)
    assert "Round 0" in text_and_elements(page(Run("none")))[0]


def test_the_page_opens_in_a_browser_without_a_complaint(tmp_path: Path) -> None:
    run(tmp_path, {**GOOD, 14: raising, 15: lying})
    opened = shown(tmp_path / "report.html")
    assert opened.console == []
    assert "Round 3 of 3" in opened.text
    assert "Mean 39 % accuracy, round 3" in opened.text
    assert "img" not in opened.elements
    # Of one that goes on the browser says how long nothing was heard.
    alive = page(Run("mine", total=9))
    silent = re.sub(r"(Date.now[^-]*- )\d+", rf"\g<1>{time.time() - 3700}", alive)
    (tmp_path / "silent.html").write_text(silent)
    assert "Nothing was heard of this run for 61 minutes" in shown(tmp_path / "silent.html").text
    # A complaint would be heard.
    (tmp_path / "bad.html").write_text(alive + "<script>nothing()</script>")
    bad = shown(tmp_path / "bad.html")
    assert "nothing is not defined" in bad.console[0]
    assert "Nothing was heard" not in bad.text
