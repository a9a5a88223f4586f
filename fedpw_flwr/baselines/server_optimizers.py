"""Flower's FedAvgM and FedAdam, for models with BatchNorm.

Flower's own step along every array: momentum carries a running variance past 0, and the model
answers NaN; adaptive steps leave it where training never was, and a counter at a fraction. Here
their step is taken on the trained arrays, and the rest is averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Unpack

import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import strategy as flower
from torch import Tensor

from fedpw_flwr.algorithm.tensors import TensorKind, classify_tensors, saturated
from fedpw_flwr.baselines.fedavg import FedAvg
from fedpw_flwr.baselines.settings import number_in
from fedpw_flwr.strategy.screened_fedavg import FedAvgOptions
from fedpw_flwr.wire.arrays import ArrayTensors, encode_arrays

__all__ = ["FedAdam", "FedAvgM"]


class _TrainableAverage(FedAvg):
    """What stands behind Flower's step: hands it the average of the trained arrays alone."""

    average: ArrayRecord | None = None
    """The round's average of all arrays; None where no reply could be used."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        before = self.rounds
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.average = arrays if self.rounds > before else None
        if self._global_arrays is not None:
            # Without the arrays that no client returned.
            self._start_step_from(_trainable_part(self._global_arrays))
        # Nothing to step along: Flower's strategies leave everything as it is then.
        return None if self.average is None else _trainable_part(self.average), metrics

    @abstractmethod
    def _start_step_from(self, trainable: ArrayRecord) -> None:
        """Tell Flower's step which arrays it starts from."""


def _trainable_part(arrays: ArrayRecord) -> ArrayRecord:
    return ArrayRecord(
        {
            name: arrays[name]
            for name, kind in classify_tensors(ArrayTensors(arrays)).items()
            if kind is TensorKind.TRAINABLE
        }
    )


class _StepOnTrainable(FedAvg):
    """What stands in front of Flower's step: puts the other arrays back beside what it returns."""

    average: ArrayRecord | None

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and step on the trained arrays; the current model where no reply can be used."""
        stepped, metrics = super().aggregate_train(server_round, replies)
        if stepped is None or self.average is None:
            assert self._global_arrays is not None
            return self._global_arrays.copy(), metrics
        average, moved = ArrayTensors(self.average), ArrayTensors(stepped)
        model = {
            name: _of_dtype(moved[name], average[name].dtype) if name in stepped else average[name]
            for name in average
        }
        return encode_arrays(model), metrics


def _of_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Give a stepped array the model's dtype: Flower computes in a larger one."""
    return saturated(tensor.clone(), dtype)


class FedAvgM(_StepOnTrainable, flower.FedAvgM, _TrainableAverage):
    """FedAvg with momentum on the server: v ← μ v + Σ_k (n_k / n) Δ_k,  w ← w − η v.

    Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification", 2019. The step is Flower's.

    Parameters
    ----------
    server_learning_rate : float (default: 1.0)
        η > 0.
    server_momentum : float (default: 0.9)
        μ in [0, 1).
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.9,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        number_in("server_learning_rate", server_learning_rate, 0.0, above=True)
        if number_in("server_momentum", server_momentum, 0.0, 1.0) == 1.0:
            raise ValueError("server_momentum=1 would never forget a step: choose one below 1")
        super().__init__(
            server_learning_rate=server_learning_rate, server_momentum=server_momentum, **options
        )

    def _start_step_from(self, trainable: ArrayRecord) -> None:
        self.current_arrays = trainable


class FedAdam(_StepOnTrainable, flower.FedAdam, _TrainableAverage):
    """FedAdam: Adam on the server, the round's mean update as its gradient.

    Reddi et al., "Adaptive Federated Optimization", ICLR 2021, with Δ the mean of w_k − w:
    m ← β₁ m + (1−β₁) Δ,  v ← β₂ v + (1−β₂) Δ²,  w ← w + η_t m / (√v + τ). The step is Flower's,
    with Adam's correction of the first rounds in η_t.

    Parameters
    ----------
    eta : float (default: 0.1)
        η > 0.
    beta_1, beta_2 : float (default: 0.9, 0.99)
        In [0, 1).
    tau : float (default: 0.001)
        τ > 0: the larger, the less adaptive.
    **options : FedAvgOptions
        As in Flower's FedAvg.

    Raises
    ------
    TypeError
        If a setting is not a number.
    ValueError
        If a setting is outside its range.
    """

    def __init__(
        self,
        *,
        eta: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        **options: Unpack[FedAvgOptions],
    ) -> None:
        number_in("eta", eta, 0.0, above=True)
        number_in("tau", tau, 0.0, above=True)
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if number_in(name, beta, 0.0, 1.0) == 1.0:
                raise ValueError(f"{name}=1 would never learn of a step: choose one below 1")
        super().__init__(eta=eta, beta_1=beta_1, beta_2=beta_2, tau=tau, **options)

    def _start_step_from(self, trainable: ArrayRecord) -> None:
        self.current_arrays = {name: array.numpy() for name, array in trainable.items()}
