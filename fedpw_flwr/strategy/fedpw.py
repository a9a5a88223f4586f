"""FedPW as a strategy of Flower's Message API: one line changed in an existing ServerApp."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Unpack

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedpw_flwr.rounds.checkpoints import CheckpointStore
from fedpw_flwr.rounds.driver import Driver
from fedpw_flwr.rounds.loop import run_rounds
from fedpw_flwr.strategy.compatibility import refuse_incompatible
from fedpw_flwr.strategy.fedpw_method import FedPWMethod, WithFedPW
from fedpw_flwr.strategy.options import FedPWOptions, split
from fedpw_flwr.strategy.sampling import NodeSampling
from fedpw_flwr.strategy.screened_fedavg import ScreenedFedAvg


class FedPW(WithFedPW, ScreenedFedAvg):
    """Fair federated learning by parameter adjustment and adaptive weights.

    Implementation of FedPW (Guan et al., "Rethinking Fair Federated Learning from Parameter and
    Client View", NeurIPS 2025). A drop-in for Flower's FedAvg: clients stay as they are, as long as
    their training replies report the mean training loss (or see `loss_source`).

    A reply that cannot be used (not finite, wrong shape, missing loss, ...) costs only itself: it
    is dropped, logged with client and reason, and counted in the round's metrics. Where all replies
    of the first round have the same fault, it is the project's, and an error says what to change.

    A round's metrics are the clients' averaged ones with FedPW's own: parallel lists
    ``fedpw-client-id``, ``fedpw-weight``, ``fedpw-p``, ``fedpw-q``, ``fedpw-drop-rate``,
    ``fedpw-loss`` over the participants, and the numbers ``fedpw-loss-term-share``,
    ``fedpw-amplification``, ``fedpw-bounded``, ``fedpw-quarantined``, ``fedpw-failed``,
    ``fedpw-empty``.

    Parameters
    ----------
    fraction_train, fraction_evaluate, min_train_nodes, min_evaluate_nodes, min_available_nodes
        Sampling of nodes, as in Flower's FedAvg.
    weighted_by_key : str (default: "num-examples")
        MetricRecord key by which metrics are averaged, and the aggregation weight where
        `adapt_weights` is False. Equal weights where no reply has it.
    arrayrecord_key, configrecord_key, train_metrics_aggr_fn, evaluate_metrics_aggr_fn
        As in Flower's FedAvg.
    avg_drop_rate : float (default: 0.3)
        r̄, the mean share of an update's entries that is masked, in [0, 1).
    beta : float (default: 0.3)
        β, base momentum of the weights, in (0, 1].
    train_loss_key : str (default: "train_loss")
        MetricRecord key under which clients report their mean training loss.
    loss_source : "train" | "evaluate" (default: "train")
        Where the clients' losses come from. "evaluate": from the federated evaluation of the round
        before, for clients whose training reports none. It costs an evaluation by every client in
        every round (`fraction_evaluate` 1.0), and comes late: round 1 counts all losses as equal.
        A client that was not evaluated counts with its last loss, which keeps its ratio to the
        median, or with the median. These losses steer training: let clients evaluate on data that
        no reported figure comes from.
    evaluate_loss_key : str (default: "eval_loss")
        MetricRecord key under which clients report the loss of evaluation.
    clip_weights : bool (default: True)
        Never give a client a negative weight. False is the paper's formula.
    adjust_parameters : bool (default: True)
        Parameter Adjustment; False is the ablation without it.
    adapt_weights : bool (default: True)
        Adaptive Weighted Aggregation; False is the ablation without it. Both False is FedAvg.
    max_weight : float | None (default: 3.0)
        Largest aggregation weight of one client, in units of the equal share 1/N: what a client can
        grab by reporting a large loss. Not for weights by number of examples. None: the paper's
        formula.
    max_loss_ratio : float | None (default: 10.0)
        A loss counts as at most this many times the round's median, and as at least the median
        divided by it. None: the paper's formula.
    trainable : Sequence[str] | None (default: None)
        Names of the trainable arrays. None: all floating arrays except BatchNorm's running
        statistics.
    device : str | torch.device | None (default: None)
        Where the server step runs; None is the CPU, whose form of it is the fast one.
    adjustment : "server" | "client" (default: "server")
        Where Parameter Adjustment runs. "server": the paper's formulas, with any clients. "client":
        each client masks and rescales its own update, with what the server knew before the round
        (`FedPWClient` or `fedpw_mod`); the server adjusts the updates of clients that do not.
    upload : "dense" | "packed" (default: "dense")
        How clients send adjusted updates: as arrays, or as bit masks with the kept values.
    upload_dtype : "float32" | "float16" | "bfloat16" (default: "float32")
        Type of packed values.
    checkpoint_dir : str | Path | None (default: None)
        Folder for checkpoints: model, state of the method, metrics and random state. None: none.
    checkpoint_every : int (default: 1)
        Rounds between two checkpoints.
    resume : bool (default: False)
        Whether `start` goes on after the newest intact checkpoint in `checkpoint_dir`, and begins
        where there is none yet. False refuses a folder that holds checkpoints.
    wait_for_clients : float | None (default: 3600.0)
        Seconds to wait for as many nodes as are needed (`min_available_nodes`, `min_train_nodes`,
        `min_evaluate_nodes`), counted from when there were last enough. None waits for ever.
    seed : int | None (default: None)
        Decides which nodes are drawn for a round, where some are; the same clients in another run
        where they may be asked who they are: once every node has shown that it answers, with
        `numpy_client_app` and numbered clients, or from the first round on with
        ``strategy.sampling.asks_identities = True``. None: a number from `random`.
    when_missing : "stop" | "continue" (default: "stop")
        After it, "stop" the run with `TooFewClientsError`, or "continue" with the nodes that are
        there, without waiting again until there were enough.
    observers : Sequence[Observer] (default: ())
        Told what each round was, and asked whether to stop, such as `EarlyStopping`, trackers, or
        your own (`fedpw_flwr.rounds.observers.Observer`).

    Raises
    ------
    ValueError
        If a setting is outside its range, or `device` is not there.
    TypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> from fedpw_flwr import FedPW
    >>> strategy = FedPW(fraction_train=1.0, min_available_nodes=4)
    """

    metrics_prefix = "fedpw-"

    def __init__(self, *positional: Any, **options: Unpack[FedPWOptions]) -> None:
        of_method, rest = split(options, FedPWOptions)
        self.method = FedPWMethod(of_method)
        folder, every = rest.pop("checkpoint_dir", None), rest.pop("checkpoint_every", 1)
        self.resume = rest.pop("resume", False)
        waiting = rest.pop("wait_for_clients", 3600.0), rest.pop("when_missing", "stop")
        sampling = NodeSampling(rest.pop("seed", None), *waiting)
        if folder is None and self.resume:
            raise ValueError("resume=True needs checkpoint_dir, the folder of the checkpoints")
        self.checkpoints = None if folder is None else CheckpointStore(folder, every=every)
        self.observers = tuple(rest.pop("observers", ()))
        self._in_our_loop = False
        super().__init__(Driver(self.method), sampling, *positional, **rest)
        self._check_evaluation()

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the rounds as FedAvg does, with the checkpoints and observers that were given.

        The result has the last model, and the metrics of all rounds, also those before a resume.
        `CheckpointError` if a checkpoint cannot be written, read, or gone on from; see `resume`.
        """
        arguments = (
            *(grid, initial_arrays, num_rounds, timeout),
            *(train_config, evaluate_config, evaluate_fn),
        )
        if self.checkpoints is None and not self.observers:
            return super().start(*arguments)
        self._in_our_loop = True
        return run_rounds(
            *(self, self.checkpoints, *arguments), resume=self.resume, observers=self.observers
        )

    def summary(self) -> None:
        """Log the method's settings and those of FedAvg.

        ValueError if the strategy stands inside a wrapper that it cannot work with.
        """
        refuse_incompatible()
        self.method.log_settings()
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model to the nodes that train, with what each is to do to its update.

        Raises as `Driver.begin`; also a ValueError if something around the strategy or in `config`
        cannot work with it.
        """
        refuse_incompatible(self.method.upload, config)
        if (self.checkpoints is not None or self.observers) and not self._in_our_loop:
            given = (
                "observers was given" if self.checkpoints is None else "checkpoint_dir was given"
            )
            raise ValueError(
                f"{given}, but not FedPW's start runs the rounds, so none would be saved or told: "
                "call fedpw_flwr.checkpoint.rounds.run_rounds(strategy, CheckpointStore(folder), "
                "grid, arrays, ..., observers=[...]) in place of strategy.start, and let a "
                "strategy around FedPW pass on its saved_state, restore_state and fingerprint"
            )
        return super().configure_train(server_round, arrays, config, grid)
