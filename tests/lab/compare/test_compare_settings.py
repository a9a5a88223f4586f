"""Runs are put together with those that they can be compared with, and with no others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.made_runs import made_run

from fedpw_flwr.lab.compare.markdown import held_examples, local_training
from fedpw_flwr.lab.compare.runs import FinishedRun
from fedpw_flwr.lab.compare.settings import Setting, group_runs
from fedpw_flwr.lab.runs.holdings import ClientHolding, Holdings
from fedpw_flwr.lab.runs.records import RoundRecord


def run(
    strategy: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    domains: tuple[str, ...] = ("a", "b"),
    rounds: int = 2,
    **given: Any,
) -> FinishedRun:
    """A finished run whose configuration, and what else it recorded, is as given."""
    recorded = {"name", "finished_at", "data_digest", "holdings"} & given.keys()
    told = {key: given.pop(key) for key in recorded}
    strategy = {"name": "fedavg"} if strategy is None else strategy
    accuracy, loss = dict.fromkeys(domains, 0.5), dict.fromkeys(domains, 1.0)
    records = [RoundRecord(number, 1.0, accuracy, loss) for number in range(rounds + 1)]
    configuration = {
        "dataset": {"_target_": "some.images", "folder": "/data", "domains": list(domains)},
        "partition": {"_target_": "some.ByDomain", "clients_per_domain": 2},
        "model": {"_target_": "some.ResNet10", "width": 16},
        "strategy": strategy,
        "runtime": {"device": "cpu"},
        **{"seed": seed, "rounds": rounds, "resume": None},
    }
    own = strategy.get("name", "mine")
    return made_run(records, configuration | given, strategy=own, seed=seed, **told)


def held(*clients: tuple[int, int]) -> Holdings:
    """Clients with so many images to train and to test on, of two classes."""
    return Holdings([ClientHolding("a", [train - 1, 1], [0, test]) for train, test in clients])


def only_setting(*runs: FinishedRun) -> Setting:
    (setting,), _ = group_runs(runs)
    return setting


def labels(setting: Setting) -> list[str]:
    return [method.label for method in setting.methods]


ONE: dict[str, Any] = {
    "runtime": {"device": "cpu"},
    "resume": None,
    "dataset": {"folder": "/data", "download": False, "archives_folder": "/archives"},
    "client": {"decay": [0.5, 0]},
}
OTHER: dict[str, Any] = {
    "runtime": {"device": "cuda"},
    "resume": "/runs/before",
    "dataset": {"folder": None, "download": True, "archives_folder": "/elsewhere"},
    "client": {"decay": [0.5, 0.0]},
}
# What clients evaluate, how long the server waits, and where it computes.
ONE_WAY = {"fraction_evaluate": 0.0, "wait_for_clients": 1.0, "device": None, "beta": 1}
ANOTHER = {"fraction_evaluate": 1.0, "wait_for_clients": 9.0, "device": "cpu", "beta": 1.0}


def test_what_changes_no_result_makes_neither_another_setting_nor_another_method() -> None:
    first = run({"name": "fedavg", **ONE_WAY}, **ONE)
    second = run({"name": "fedavg", **ANOTHER, "min_evaluate_nodes": 3}, seed=1, **OTHER)
    setting = only_setting(first, second)
    assert labels(setting) == ["fedavg"]
    assert list(setting.methods[0].runs) == [0, 1]


def test_strategies_are_the_methods_of_one_setting() -> None:
    setting = only_setting(run(), run({"name": "fedpw"}, seed=3), run(seed=1))
    assert labels(setting) == ["fedavg", "fedpw"]
    assert [list(method.runs) for method in setting.methods] == [[0, 1], [3]]


def test_runs_that_stopped_early_are_of_the_setting_of_those_that_had_all_rounds() -> None:
    stopped = replace(run({"name": "fedpw"}, rounds=3), rounds=7)
    setting = only_setting(run(rounds=7), stopped)
    assert labels(setting) == ["fedavg", "fedpw"]
    assert "7 rounds" in setting.label


def test_how_many_clients_train_makes_another_setting_and_no_other_method() -> None:
    settings, _ = group_runs([run({"name": "a", "min_train_nodes": least}) for least in (2, 5)])
    assert [setting.label.rpartition(" · ")[2] for setting in settings] == [
        *("strategy.min_train_nodes=2", "strategy.min_train_nodes=5")
    ]
    all_clients = {"name": "fedavg", "fraction_train": 1.0}
    some = {"name": "fedavg", "fraction_train": 0.1}
    settings, _ = group_runs([run(all_clients), run(some)])
    assert [labels(setting) for setting in settings] == [["fedavg"], ["fedavg"]]
    told = ["10 % of clients a round" in setting.label for setting in settings]
    assert sorted(told) == [False, True]
    # Without the key, Flower's default holds: all clients.
    assert len(only_setting(run(all_clients), run({"name": "fedpw"})).methods) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"_target_": "some.ResNet10", "width": 64}},
        {"client": {"epochs": 2}},
        {"partition": {"name": "dirichlet", "alpha": 0.1}},
        {"domains": ("a", "c")},
        {"rounds": 3},
        {"dataset": {"name": "cifar10", "archives_folder": None}},
    ],
    ids=lambda other: next(iter(other)),
)
def test_anything_else_makes_another_setting(other: dict[str, Any]) -> None:
    same = {"dataset": {"name": "cifar10", "archives_folder": "/archives"}}
    settings, _ = group_runs([run(**(same if "dataset" in other else {})), run(**other)])
    assert len(settings) == 2
    assert len({setting.label for setting in settings}) == 2
    assert len({setting.slug for setting in settings}) == 2


@pytest.mark.parametrize(
    ("one", "label"),
    [
        ({}, "a, b · ByDomain · 4 clients · ResNet10, width=16 · 2 rounds"),
        (
            {
                "rounds": 1,
                "dataset": {"name": "cifar10"},
                "partition": {"name": "dirichlet", "alpha": 0.1, "clients_per_domain": 10},
                "model": {"name": "small"},
            },
            "cifar10 · dirichlet, alpha=0.1 · 20 clients · small · 1 round",
        ),
        # A data set's own partition is not repeated.
        (
            {"dataset": {"name": "own"}, "partition": {"name": "own"}},
            "own · ResNet10, width=16 · 2 rounds",
        ),
        # Clients are those of the partition that was made.
        (
            {"partition": {"name": "mine"}, "holdings": held(*[(4, 0)] * 10)},
            "a, b · mine · 10 clients · ResNet10, width=16 · 2 rounds",
        ),
        # Many domains are counted.
        (
            {"domains": tuple(f"site {number}" for number in range(9))},
            "9 domains (site 0, site 1, site 2, …) · ByDomain · 18 clients · ResNet10, width=16 · "
            "2 rounds",
        ),
    ],
)
def test_a_label_says_data_partition_clients_model_and_rounds(
    one: dict[str, Any], label: str
) -> None:
    assert only_setting(run(**one)).label == label


def test_a_label_says_that_data_are_archives_and_how_many_test_images_there_are() -> None:
    several = {"_target_": "some.archives", "max_test_per_domain": 300}
    label = only_setting(run(dataset=several)).label
    assert label.startswith("a, b (archives, at most 300 test images a domain) · ")
    one = {"name": "cifar10", "archives_folder": "/data", "max_test_per_domain": 300}
    setting = only_setting(run(domains=("a",), dataset=one))
    assert setting.label.startswith("cifar10 (archives, at most 300 test images) · ")
    assert setting.slug == "cifar10-bydomain-2-clients-resnet10-width=16-2-rounds"


def test_local_training_is_told_in_words_and_what_has_none_by_key() -> None:
    client = {
        "_target_": "some.Settings",
        "epochs": 5,
        "batch_size": 64,
        "learning_rate": 0.01,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "crop_padding": 4,
        "horizontal_flip": False,
        "precision": "bfloat16",
        "compile": True,
        "label_smoothing": 0.1,
    }
    model = {"_target_": "some.ResNet10", "normalisation": "group"}
    assert local_training(run(client=client, model=model)) == (
        "Local training: 5 epochs, batches of 64, SGD with learning rate 0.01, momentum 0.9, "
        "weight decay 0, crops padded by 4 pixels, bfloat16, label_smoothing=0.1. "
        "Normalisation of the network: group."
    )
    assert local_training(run()) == ""


def test_the_examples_that_clients_hold_are_told_over_all_runs() -> None:
    first, second = run(holdings=held((10, 2), (30, 5))), run(holdings=held((8, 2), (30, 3)))
    assert held_examples([first, second, run()]) == (
        "Each client trains on 8 to 30 examples, and keeps 2 to 5 for testing."
    )
    assert held_examples([run(holdings=held((7, 0)))]) == "Each client trains on 7 examples."
    pixels = {"image_size": 16}
    assert "on 7 images" in held_examples([run(dataset=pixels, holdings=held((7, 0)))])
    assert held_examples([run()]) == ""


def test_the_number_of_classes_is_the_configuration_s_or_the_partition_s() -> None:
    configured = run(dataset={"name": "cifar100", "num_classes": 100}, holdings=held((3, 0)))
    assert only_setting(configured).classes == 100
    assert only_setting(run(holdings=held((3, 0)))).classes == 2
    assert only_setting(run()).classes is None


def test_each_value_of_a_sweep_is_a_method_of_its_own() -> None:
    swept = [run({"name": "fedpw", "beta": beta}, seed=s) for beta in (10, 0.5) for s in (0, 1)]
    setting = only_setting(run(), *swept)
    assert labels(setting) == ["fedavg", "fedpw, beta=0.5", "fedpw, beta=10"]
    assert all(list(method.runs) == [0, 1] for method in setting.methods[1:])


def test_a_key_that_some_runs_do_not_have_is_said_to_be_absent() -> None:
    setting = only_setting(run({"name": "fedpw"}), run({"name": "fedpw", "max_weight": None}))
    assert labels(setting) == ["fedpw, max_weight=absent", "fedpw, max_weight=null"]


def test_of_runs_that_are_the_same_the_newest_counts_and_the_others_are_named() -> None:
    older, newer = run(finished_at=1.0, name="older"), run(finished_at=2.0, name="newer")
    for order in ((older, newer), (newer, older)):
        (setting,), repeated = group_runs(order)
        assert setting.runs == [newer]
        assert [left.path for left in repeated] == [older.path]
        assert "newer_0" in repeated[0].reason


def test_runs_of_one_configuration_on_different_images_are_not_compared() -> None:
    settings, left_out = group_runs(
        [
            run(data_digest="1a2b3c4d5e6f"),
            run({"name": "fedpw"}, seed=1, data_digest="9f8e7d6c5b4a"),
            run({"name": "afl"}, data_digest="9f8e7d6c5b4a"),
            run({"name": "term"}),
        ]
    )
    assert {setting.label.rpartition(" · ")[2]: labels(setting) for setting in settings} == {
        "data=1a2b3c4d": ["fedavg"],
        "data=9f8e7d6c": ["afl", "fedpw"],
        "data=not recorded": ["term"],
    }
    assert left_out == []


def test_runs_that_did_not_record_their_images_are_compared_with_those_on_the_only_ones() -> None:
    setting = only_setting(run(), run({"name": "fedpw"}, data_digest="1a2b3c4d5e6f"))
    assert labels(setting) == ["fedavg", "fedpw"]
    assert "data=" not in setting.label


def test_the_reference_is_fedavg_or_else_the_first_method() -> None:
    fedpw, afl = run({"name": "fedpw"}), run({"name": "afl"})
    setting = only_setting(afl, run(), fedpw)
    assert setting.reference(None) is setting.methods[1]
    assert setting.reference("fedpw") is setting.methods[2]
    assert setting.reference("term") is None
    without = only_setting(fedpw, afl)
    assert without.reference(None) is without.methods[0]
    # In a sweep it is named by its label, or by its strategy.
    swept = only_setting(*(run({"name": "fedpw", "beta": beta}) for beta in (0.1, 0.3)))
    assert swept.reference("fedpw, beta=0.3") is swept.methods[1]
    assert swept.reference("fedpw") is swept.methods[0]
