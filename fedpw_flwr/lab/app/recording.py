"""From what a strategy decides in a round to what the run folder keeps of it.

`RunRecorder` hears the training metrics of each round, tests the model and writes both down.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedpw_flwr.lab.app.profiling import RoundProfiler
from fedpw_flwr.lab.app.testing import GlobalModelTest, Tested
from fedpw_flwr.lab.config.configuration import resolved_yaml
from fedpw_flwr.lab.experiment import Experiment
from fedpw_flwr.lab.runs.package_state import package_state
from fedpw_flwr.lab.runs.records import ClientFigures, RoundRecord, RunSummary, best_round
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.wire.records import identity_of


def client_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Aggregate a round's training metrics for any strategy, keeping what each client said.

    Parameters
    ----------
    contents : list[RecordDict]
        The clients' replies.
    weighted_by_key : str
        Metric that weights the mean.

    Returns
    -------
    MetricRecord
        ``train_loss``, the weighted mean, and the parallel lists ``client-id``, ``client-loss`` and
        ``client-share`` (the clients' shares of the weights). Nothing where no reply says which
        client it is from.
    """
    replies = [one for content in contents if (one := _only(content)) is not None]
    if not replies:
        return MetricRecord()
    total = sum(metrics[weighted_by_key] for _, metrics in replies)
    shares = [float(metrics[weighted_by_key] / total) for _, metrics in replies]
    losses = [float(metrics["train_loss"]) for _, metrics in replies]
    return MetricRecord(
        {
            "train_loss": sum(share * loss for share, loss in zip(shares, losses, strict=True)),
            "client-id": [client for client, _ in replies],
            "client-loss": losses,
            "client-share": shares,
        }
    )


def _only(content: RecordDict) -> tuple[int, Any] | None:
    (metrics,) = content.metric_records.values()
    client = identity_of(content)
    return None if client is None else (client, metrics)


class RunRecorder(Observer):
    """Tests the global model after every round and writes the round into the run folder.

    It is tested on every domain's test images, and on those that the clients keep.

    Parameters
    ----------
    folder : RunFolder
        A started run folder.
    experiment : Experiment
        The experiment that runs.
    profiler : RoundProfiler | None (default: None)
        Knows where the time of a round went; None in a run that is not profiled.
    test : GlobalModelTest | None (default: None)
        Tests the models; None: a test in this process.
    shown : Callable | None (default: None)
        Is called with each record.
    """

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        profiler: RoundProfiler | None = None,
        test: GlobalModelTest | None = None,
        shown: Callable[[RoundRecord], None] | None = None,
    ) -> None:
        self._folder = folder
        self._experiment = experiment
        self._profiler, self._shown = profiler, shown
        self._test = GlobalModelTest(experiment) if test is None else test
        self._model = experiment.new_model()
        self._records: list[RoundRecord] = []
        self._train_metrics: MetricRecord | None = None
        self._since: float | None = None

    def on_begin(self, after: int | None) -> None:
        """Take the rounds that the folder has already as recorded."""
        self._records = self._folder.read_rounds()
        if self._records:
            self._since = time.monotonic()

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        """Keep a round's training metrics until the round is recorded."""
        self._train_metrics = metrics

    def record_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Test a global model on every domain, record the round and save the model.

        Parameters
        ----------
        server_round : int
            Round number; 0 is the initial model.
        arrays : ArrayRecord
            The global model after the round.

        Returns
        -------
        MetricRecord
            Mean, STD (where there are two domains or more) and worst accuracy, for Flower's log;
            nothing where ``runtime.evaluate_every`` passes the round over.
        """
        begun = time.monotonic()
        since = begun if self._since is None else self._since
        every, last = self._experiment.runtime.evaluate_every, self._experiment.rounds
        due = server_round % every == 0 or server_round == last
        tested = self._test(arrays) if due else Tested({}, None)
        # Record the round.
        metrics = self._train_metrics if self._train_metrics is not None else MetricRecord()
        self._train_metrics = None
        now = time.monotonic()
        profile = None
        if self._profiler is not None:
            self._profiler.spent("evaluate", now - begun)
            profile = self._profiler.take(now - since)
        record = RoundRecord(
            round=server_round,
            seconds=now - since,
            accuracy={name: result.accuracy for name, result in tested.domains.items()},
            loss={name: result.loss for name, result in tested.domains.items()},
            train_loss=_number(metrics, "train_loss"),
            clients=self._client_figures(metrics),
            loss_term_share=_number(metrics, "fedpw-loss-term-share"),
            amplification=_number(metrics, "fedpw-amplification"),
            quarantined=_count(metrics, "fedpw-quarantined", "quarantined"),
            failed=_count(metrics, "fedpw-failed", "failed"),
            empty=_count(metrics, "fedpw-empty", "empty"),
            bounded=_count(metrics, "fedpw-bounded"),
            client_accuracy=tested.client_accuracy,
            profile=profile,
        )
        # Write it down, and save the model.
        self._since = now
        self._records.append(record)
        self._folder.append_round(record)
        self._save_model(record, arrays)
        if self._shown is not None:
            self._shown(record)
        if not due:
            return MetricRecord()
        spread = record.spread
        figures = MetricRecord({"mean_accuracy": spread.mean, "worst_accuracy": spread.worst})
        if len(tested.domains) > 1:
            figures["std_accuracy"] = spread.std
        return figures

    def finish(self) -> None:
        """Write the summary of the run.

        Raises
        ------
        RuntimeError
            If no round had a reply that could be used, so the model is still the initial one, or
            training diverged: the last model's test loss is not finite.
        """
        if not any(record.clients for record in self._records):
            raise RuntimeError(
                f"none of the {self._records[-1].round} rounds had a client's reply that could be "
                "used, so nothing was trained: the log says for every reply what was wrong"
            )
        last = self._records[-1]
        diverged = [name for name, loss in last.loss.items() if not math.isfinite(loss)]
        if diverged:
            raise RuntimeError(
                f"training diverged: after round {last.round} the model's test loss is not finite "
                f"on {', '.join(diverged)}. Try a smaller client.learning_rate, or other settings "
                "of the strategy; metrics.jsonl has all rounds"
            )
        configuration = self._experiment.configuration
        self._folder.write_summary(
            RunSummary.of_run(
                self._records,
                config_text=resolved_yaml(configuration),
                strategy=str(configuration.strategy.name),
                seed=self._experiment.seed,
                data_digest=self._experiment.data_digest,
                package=package_state(),
            )
        )

    def _save_model(self, record: RoundRecord, arrays: ArrayRecord) -> None:
        # Through the model, for its dtypes: a strategy may have averaged a counter.
        self._model.load_state_dict(arrays.to_torch_state_dict())
        state = self._model.state_dict()
        metadata = {"round": str(record.round)}
        self._folder.save_model(state, "model.safetensors", metadata)
        if best_round(self._records) is record:
            self._folder.save_model(state, "model_best.safetensors", metadata)

    def _client_figures(self, metrics: MetricRecord) -> ClientFigures | None:
        if "fedpw-client-id" in metrics:
            keys = {name: f"fedpw-{name}" for name in ("p", "q", "drop-rate", "loss")}
            identities, weights = metrics["fedpw-client-id"], metrics["fedpw-weight"]
        elif "client-id" in metrics:
            keys = {"loss": "client-loss"}
            share = "client-weight" if "client-weight" in metrics else "client-share"
            identities, weights = metrics["client-id"], metrics[share]
        else:
            return None
        clients = [int(client) for client in _list(identities)]
        # Anybody may say to be anybody: who is no client of the experiment has no domain.
        known = (index for index, one in enumerate(clients) if one < len(self._experiment.shares))
        order = sorted(known, key=clients.__getitem__)
        optional = {
            name.replace("-", "_"): _floats(metrics[key], order)
            for name, key in keys.items()
            if key in metrics
        }
        return ClientFigures(
            id=[clients[index] for index in order],
            domain=[self._experiment.shares[clients[index]].domain for index in order],
            weight=_floats(weights, order),
            **optional,
        )


def _number(metrics: MetricRecord, key: str) -> float | None:
    return float(metrics[key]) if key in metrics else None  # type: ignore[arg-type]


def _count(metrics: MetricRecord, *keys: str) -> int | None:
    """Return the first of the counts that is there."""
    found = next((metrics[key] for key in keys if key in metrics), None)
    return None if found is None else int(found)  # type: ignore[arg-type]


def _list(values: object) -> Sequence[Any]:
    assert isinstance(values, list)
    return values


def _floats(values: object, order: Sequence[int]) -> list[float]:
    entries = _list(values)
    return [float(entries[index]) for index in order]
