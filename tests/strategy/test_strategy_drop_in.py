"""FedPW stands wherever Flower's FedAvg stood."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from support.grid import ClientsGrid, ask, train_round
from support.records import array_record, ndarrays
from support.small_model import MODEL, evaluate_reply, good_client, train_reply, trained

from fedpw_flwr import FedPW, MissingLossError
from fedpw_flwr.algorithm import FedPWSettings
from fedpw_flwr.strategy.options import FedAvgOptions, FedPWOptions

NODES = [11, 12, 13, 14]


@pytest.fixture
def grid() -> ClientsGrid:
    return ClientsGrid(dict.fromkeys(NODES, good_client))


def test_it_is_a_fedavg_and_its_options_are_fedavgs_with_their_defaults_and_the_methods() -> None:
    assert issubclass(FedPW, FedAvg)
    flowers = inspect.signature(FedAvg).parameters
    assert FedAvgOptions.__annotations__.keys() == flowers.keys()
    ours, theirs = FedPW(), FedAvg()
    assert {name: getattr(ours, name) for name in flowers} == {
        name: getattr(theirs, name) for name in flowers
    }
    assert FedPWOptions.__annotations__.keys() - flowers.keys() == {
        *("avg_drop_rate", "beta", "train_loss_key", "clip_weights", "adjust_parameters"),
        *("adapt_weights", "max_weight", "max_loss_ratio", "trainable", "device"),
        *("adjustment", "upload", "upload_dtype", "checkpoint_dir", "checkpoint_every"),
        *("loss_source", "evaluate_loss_key"),
        *("resume", "wait_for_clients", "when_missing", "seed", "observers"),
    }
    assert ours.settings == FedPWSettings(0.3, 0.3, True, True, True, 3.0, 10.0, None)
    method = ours.method
    assert (method.train_loss_key, method.adjustment) == ("train_loss", "server")
    assert (method.upload, method.upload_dtype) == ("dense", "float32")


def test_positional_and_keyword_arguments_reach_fedavg() -> None:
    def of_train(contents: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord()

    def of_evaluation(contents: list[RecordDict], key: str) -> MetricRecord:
        return MetricRecord()

    arguments = (0.5, 0.6, 3, 4, 5, "examples", "model", "settings", of_train, of_evaluation)
    by_name = dict(zip(inspect.signature(FedAvg).parameters, arguments, strict=True))
    for strategy in (FedPW(*arguments, beta=0.5), FedPW(**by_name, beta=0.5)):
        assert {name: getattr(strategy, name) for name in by_name} == by_name


def test_start_runs_rounds_of_training_and_evaluation(grid: ClientsGrid) -> None:
    seen: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(server_round)
        assert list(arrays) == list(MODEL)
        return MetricRecord({"round": server_round})

    result = FedPW().start(grid, array_record(MODEL), num_rounds=3, evaluate_fn=evaluate)
    assert seen == [0, 1, 2, 3]
    assert list(result.arrays) == list(MODEL)
    for server_round in (1, 2, 3):
        metrics = result.train_metrics_clientapp[server_round]
        assert metrics["fedpw-client-id"] == NODES
        assert metrics["fedpw-quarantined"] == 0
        accuracy = result.evaluate_metrics_clientapp[server_round]["accuracy"]
        assert accuracy == pytest.approx(np.mean([0.5 + 0.01 * (node % 7) for node in NODES]))


def test_both_ablations_off_is_flowers_fedavg_to_float_rounding(grid: ClientsGrid) -> None:
    floats = {name: array for name, array in MODEL.items() if array.dtype.kind == "f"}
    ours, flowers = (
        strategy.start(grid, array_record(floats), num_rounds=5)
        for strategy in (FedPW(adapt_weights=False, adjust_parameters=False), FedAvg())
    )
    assert list(ours.arrays) == list(flowers.arrays)
    for name, array in ndarrays(flowers.arrays).items():
        np.testing.assert_allclose(ours.arrays[name].numpy(), array, rtol=1e-5, atol=1e-6)
    for mine, theirs in (
        (ours.train_metrics_clientapp, flowers.train_metrics_clientapp),
        (ours.evaluate_metrics_clientapp, flowers.evaluate_metrics_clientapp),
    ):
        for server_round, metrics in theirs.items():
            for key, value in metrics.items():
                assert mine[server_round][key] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    "ablation", [{"adapt_weights": False}, {"adjust_parameters": False}, {}], ids=str
)
def test_any_part_of_the_method_needs_the_loss(ablation: dict[str, bool]) -> None:
    def client(message: Message) -> list[Message]:
        return [train_reply(message, loss=1.0)]

    strategy = FedPW(**ablation, train_loss_key="loss")
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    with pytest.raises(MissingLossError):
        train_round(strategy, grid, array_record(MODEL), 1)


@pytest.mark.parametrize(
    ("examples", "weights"),
    [
        ({11: 10, 12: 30, 13: 20, 14: 40}, [0.1, 0.3, 0.2, 0.4]),
        ({}, [0.25] * 4),
        # A reply without them is set aside where others have them.
        ({11: 10, 13: 10, 14: 20}, [0.25, 0.25, 0.5]),
    ],
)
def test_without_adapted_weights_clients_count_by_their_examples(
    examples: dict[int, int], weights: list[float], flower_log: pytest.LogCaptureFixture
) -> None:
    def client(message: Message) -> list[Message]:
        return [train_reply(message, num_examples=examples.get(message.metadata.dst_node_id))]

    strategy, arrays = FedPW(adapt_weights=False), array_record(MODEL)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    for server_round in (1, 2):
        arrays, metrics = train_round(strategy, grid, arrays, server_round)
        assert metrics["fedpw-client-id"] == (list(examples) or NODES)
        assert metrics["fedpw-weight"] == pytest.approx(weights)
        assert metrics["fedpw-quarantined"] == 4 - len(weights)
    assert ("num-examples" in flower_log.text) == (len(weights) < 4)


def test_custom_keys_are_sent_and_read() -> None:
    def client(message: Message) -> list[Message]:
        assert set(message.content) == {"model", "settings"}
        assert message.content["settings"]["server-round"] == 1
        node = message.metadata.dst_node_id
        content = RecordDict(
            {
                "whatever": array_record(trained(MODEL, (node,))),
                "numbers": MetricRecord({"cross-entropy": 0.5, "images": node - 10, "f1": 0.5}),
            }
        )
        return [Message(content, reply_to=message)]

    strategy = FedPW(
        weighted_by_key="images",
        arrayrecord_key="model",
        configrecord_key="settings",
        train_loss_key="cross-entropy",
        adapt_weights=False,
    )
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    _, metrics = train_round(strategy, grid, array_record(MODEL), 1)
    assert metrics["fedpw-weight"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert metrics["fedpw-loss"] == [0.5] * 4
    assert metrics["cross-entropy"] == pytest.approx(0.5)


def test_custom_metric_functions_get_every_usable_reply() -> None:
    calls: dict[str, tuple[int, str, bool]] = {}

    def client(message: Message) -> list[Message]:
        if message.metadata.message_type == "train":
            return list(good_client(message))
        # One has nothing to evaluate on.
        node = message.metadata.dst_node_id
        examples = 0 if node == 12 else 10
        return [evaluate_reply(message, accuracy=node / 100, **{"num-examples": examples})]

    def of_train(contents: list[RecordDict], key: str) -> MetricRecord:
        calls["train"] = (len(contents), key, all(content.array_records for content in contents))
        return MetricRecord({"slowest": 3.5})

    def of_evaluation(contents: list[RecordDict], key: str) -> MetricRecord:
        worst = min(float(content["metrics"]["accuracy"]) for content in contents)
        calls["evaluate"] = (len(contents), key, False)
        return MetricRecord({"worst": worst})

    strategy = FedPW(train_metrics_aggr_fn=of_train, evaluate_metrics_aggr_fn=of_evaluation)
    grid = ClientsGrid(dict.fromkeys(NODES, client))
    result = strategy.start(grid, array_record(MODEL), num_rounds=1)
    assert calls == {"train": (4, "num-examples", True), "evaluate": (3, "num-examples", False)}
    assert result.train_metrics_clientapp[1]["slowest"] == 3.5
    assert "fedpw-weight" in result.train_metrics_clientapp[1]
    assert result.evaluate_metrics_clientapp[1]["worst"] == 0.11


def test_summary_prints_the_methods_settings_and_fedavgs(
    flower_log: pytest.LogCaptureFixture,
) -> None:
    strategy = FedPW(
        fraction_train=0.25,
        avg_drop_rate=0.15,
        beta=0.45,
        train_loss_key="my-loss",
        clip_weights=False,
        adjust_parameters=False,
        trainable=["body.weight", "body.bias"],
        device="cpu",
        weighted_by_key="my-examples",
    )
    strategy.summary()
    for setting in ("FedPW", "0.15", "0.45", "my-loss", "False", "off", "2 named", "cpu"):
        assert setting in flower_log.text
    assert "0.25" in flower_log.text
    assert "my-examples" in flower_log.text


def test_a_subclass_may_choose_the_nodes_to_evaluate_itself(grid: ClientsGrid) -> None:
    class EvaluatesOnTwo(FedPW):
        def configure_evaluate(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            record = RecordDict({"arrays": arrays, "config": config})
            return self._construct_messages(record, list(grid.get_node_ids())[:2], "evaluate")

    result = EvaluatesOnTwo().start(grid, array_record(MODEL), num_rounds=1)
    assert "accuracy" in result.evaluate_metrics_clientapp[1]


def test_a_subclass_may_send_other_configs_to_each_node(grid: ClientsGrid) -> None:
    class Personal(FedPW):
        def configure_train(self, server_round, arrays, config, grid):  # type: ignore[no-untyped-def]
            messages = list(super().configure_train(server_round, arrays, config, grid))
            for message in messages:
                own = ConfigRecord({**config, "lr": 0.1 / message.metadata.dst_node_id})
                message.content = RecordDict({"arrays": arrays, "config": own})
            return messages

    _, metrics = train_round(Personal(), grid, array_record(MODEL), 1)
    assert metrics["fedpw-quarantined"] == 0
    assert len({message.content["config"]["lr"] for message in grid.sent}) == 4


def test_replies_may_come_from_a_generator(grid: ClientsGrid) -> None:
    listed, generated = FedPW(), FedPW()
    replies = ask(listed, grid, array_record(MODEL), 1)
    expected, _ = listed.aggregate_train(1, replies)
    list(generated.configure_train(1, array_record(MODEL), ConfigRecord(), grid))
    arrays, _ = generated.aggregate_train(1, (reply for reply in replies))
    assert arrays == expected


@pytest.mark.parametrize(
    ("compiled", "said"),
    [(True, "loops of large models compiled"), (False, "slower than it could be for large models")],
)
def test_the_log_says_which_loops_compute(
    compiled: bool,
    said: str,
    flower_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not compiled:
        monkeypatch.setitem(sys.modules, "numba", None)
    FedPW(device="cpu").summary()
    assert said in next(line for line in flower_log.messages if "Server step on: cpu" in line)
