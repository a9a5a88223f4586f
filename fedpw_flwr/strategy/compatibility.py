"""What FedPW cannot be combined with, noticed before anyone trains.

Flower's central-DP wrappers and its secure aggregation stand around a strategy, which is not told.
They can be seen in one place only: among the callers of its methods.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flwr.server import strategy as legacy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import strategy as message
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

__all__ = ["refuse_clipping_of_packed", "refuse_incompatible_callers"]

_CENTRAL_DP = (
    message.DifferentialPrivacyServerSideFixedClipping,
    message.DifferentialPrivacyServerSideAdaptiveClipping,
    message.DifferentialPrivacyClientSideFixedClipping,
    message.DifferentialPrivacyClientSideAdaptiveClipping,
    legacy.DifferentialPrivacyServerSideFixedClipping,
    legacy.DifferentialPrivacyServerSideAdaptiveClipping,
    legacy.DifferentialPrivacyClientSideFixedClipping,
    legacy.DifferentialPrivacyClientSideAdaptiveClipping,
    legacy.DPFedAvgFixed,
)


def refuse_clipping_of_packed(config: Mapping[str, object]) -> None:
    """Refuse a configuration for Flower's clipping mods where updates travel packed.

    Raises
    ------
    ValueError
        If it holds a clipping norm.
    """
    if KEY_CLIPPING_NORM in config:
        raise ValueError(
            f"the configuration holds {KEY_CLIPPING_NORM!r} for Flower's clipping mods, which need "
            'the arrays of an update: use FedPW(upload="dense") with them'
        )


def refuse_incompatible_callers() -> None:
    """Look for a wrapper or workflow that called the strategy and cannot work with it.

    Raises
    ------
    ValueError
        If a central-DP wrapper stands around the strategy (its noise is sized for equal weights
        1/N), or secure aggregation runs it (it hides the updates that the weights come from).
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, _CENTRAL_DP):
            raise ValueError(
                f"FedPW cannot run inside {type(caller).__name__}: central differential privacy "
                "sizes its noise for equal weights 1/N, and FedPW's weights are unequal, so the "
                "guarantee would be wrong. Use local differential privacy on the clients "
                "(flwr.clientapp.mod.LocalDpMod), or the wrapper around FedAvg"
            )
        if isinstance(caller, SecAggPlusWorkflow):
            raise ValueError(
                f"FedPW cannot run inside {type(caller).__name__}: secure aggregation hides the "
                "individual updates, and FedPW's weights come from them. Use the default fit "
                "workflow, and take secagg_mod or secaggplus_mod out of every client's "
                "ClientApp(mods=[...]), too; or use secure aggregation with FedAvg"
            )
        frame = frame.f_back
