"""From what a strategy decides in a round to what the run folder keeps of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fedpw_flwr.lab.app.profiling import RoundProfiler
from fedpw_flwr.lab.app.testing import GlobalModelTest, Tested
from fedpw_flwr.lab.config.configuration import resolved_yaml
from fedpw_flwr.lab.runs.holdings import Holdings
from fedpw_flwr.lab.runs.records import (
    ClientFigures,
    RoundRecord,
    RunSummary,
    best_round,
    package_state,
)
from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.rounds.observers import Observer
from fedpw_flwr.wire.records import identity_of


def client_metrics(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Aggregate a round's training metrics for any strategy, keeping what each client said.

    There are ``train_loss``, the weighted mean, and the parallel lists ``client-id``,
    ``client-loss`` and ``client-share`` (the clients' shares of the weights); nothing where no
    reply says which client it is from.
    """
    replies: list[tuple[int, Any]] = [
        (client, metrics)
        for content in contents
        for metrics in content.metric_records.values()
        if (client := identity_of(content)) is not None
    ]
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


_FIGURES = ("amplification", "quarantined", "failed", "empty", "bounded")
"""Of a round, as the metrics and its record call them."""


class RunRecorder(Observer):
    """Tests the global model after every round and writes the round into the run folder.

    It is tested on every domain's test images, and on those that the clients keep. Where a run is
    profiled, `profiler` knows where the time of a round went. `shown` is called with each record.
    With `resume` the folder holds a run, which goes on.
    """

    def __init__(
        self,
        folder: RunFolder,
        test: GlobalModelTest,
        profiler: RoundProfiler | None = None,
        shown: Callable[[RoundRecord], None] | None = None,
        *,
        resume: bool = False,
    ) -> None:
        self._folder, self._test, self._experiment = folder, test, test.experiment
        self._profiler, self._shown, self._resume = profiler, shown, resume
        self._records: list[RoundRecord] = []
        self._metrics = MetricRecord()
        self._since: float | None = None

    def on_begin(self, after: int | None) -> None:
        """Start the folder, or go on with the rounds that it has up to the checkpoint's."""
        experiment, folder = self._experiment, self._folder
        config = resolved_yaml(experiment.configuration)
        if self._resume:
            folder.go_on(after)
            folder.write_config(config)
        else:
            folder.start(config)
        classes, digest = experiment.data.num_classes, experiment.data_digest
        folder.write_holdings(Holdings.of_shares(experiment.shares, classes, digest))
        self._records = folder.read_rounds()
        if self._records:
            self._since = time.monotonic()

    def on_step(
        self, server_round: int, arrays: ArrayRecord | None, metrics: MetricRecord | None
    ) -> None:
        """Keep a round's training metrics until the round is recorded."""
        self._metrics = metrics or MetricRecord()

    def record_round(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Test the global model after a round, 0 before any, record the round and save the model.

        Returns the test's figures; none where ``runtime.evaluate_every`` passes the round over.
        """
        begun = time.monotonic()
        since = begun if self._since is None else self._since
        every, last = self._experiment.runtime.evaluate_every, self._experiment.rounds
        due = server_round % every == 0 or server_round == last
        tested = self._test(arrays) if due else Tested({}, None)
        # Record the round.
        metrics, self._metrics = self._metrics, MetricRecord()
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
            auc={
                name: result.auc
                for name, result in tested.domains.items()
                if result.auc is not None
            }
            or None,
            pooled_auc=tested.pooled_auc,
            train_loss=_recorded(metrics, "train_loss"),
            clients=self._client_figures(metrics),
            loss_term_share=_recorded(metrics, "loss-term-share"),
            **{name: _recorded(metrics, name) for name in _FIGURES},
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
        return MetricRecord({**record.figures()})

    def on_end(self, stopped: str | None, error: BaseException | None) -> None:
        """Write the summary of a run that did not fail."""
        if error is None:
            self.finish(stopped)

    def finish(self, stopped: str | None = None) -> None:
        """Write the summary of the run, and in it why it was stopped.

        RuntimeError if no round had a reply that could be used, so the model is still the initial
        one, or training diverged: the last model's test loss is not finite.
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
                stopped=stopped,
            )
        )

    def _save_model(self, record: RoundRecord, arrays: ArrayRecord) -> None:
        # Through the model, for its dtypes: a strategy may have averaged a counter.
        self._test.model.load_state_dict(arrays.to_torch_state_dict())
        state = self._test.model.state_dict()
        metadata = {"round": str(record.round)}
        self._folder.save_model(state, "model.safetensors", metadata)
        if best_round(self._records) is record:
            self._folder.save_model(state, "model_best.safetensors", metadata)

    def _client_figures(self, metrics: MetricRecord) -> ClientFigures | None:
        clients: Any = _recorded(metrics, "client-id")
        if clients is None:
            return None
        prefix = "fedpw" if "fedpw-client-id" in metrics else "client"
        shares = self._experiment.shares
        # Anybody may say to be anybody: who is no client of the experiment has no domain.
        known = (index for index, one in enumerate(clients) if one < len(shares))
        order = sorted(known, key=clients.__getitem__)

        def each(name: str) -> Any:
            values: Any = metrics.get(f"{prefix}-{name}")
            return None if values is None else [values[index] for index in order]

        return ClientFigures(
            id=[clients[index] for index in order],
            domain=[shares[clients[index]].domain for index in order],
            weight=each("weight") or each("share"),
            p=each("p"),
            q=each("q"),
            drop_rate=each("drop-rate"),
            loss=each("loss"),
        )


def _recorded(metrics: MetricRecord, key: str) -> Any:
    """Return FedPW's figure of this name, else any strategy's; None where there is none."""
    return metrics.get(f"fedpw-{key}", metrics.get(key))
