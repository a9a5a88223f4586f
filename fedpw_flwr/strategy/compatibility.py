"""What FedPW cannot be combined with, noticed before anyone trains.

Flower's central-DP wrappers and its secure aggregation stand around a strategy, which is not told.
They can be seen in one place only: among the callers of its methods.
"""

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any

from flwr.server import strategy as legacy
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.serverapp import strategy as message
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM

from fedpw_flwr.wire.adjustment import Upload

_CENTRAL_DP = tuple(
    wrapper
    for api in (message, legacy)
    for name, wrapper in vars(api).items()
    if name.startswith(("DifferentialPrivacy", "DPFedAvg"))
)


def refuse_incompatible(upload: Upload = "dense", config: Container[str] = ()) -> None:
    """Refuse what called the strategy, or is in a round's configuration, and cannot work with it.

    ValueError for a central-DP wrapper (its noise is sized for equal weights 1/N), for secure
    aggregation (it hides the updates that the weights come from), and for a clipping norm where
    updates travel packed.
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
    if upload == "packed" and KEY_CLIPPING_NORM in config:
        raise ValueError(
            f"the configuration holds {KEY_CLIPPING_NORM!r} for Flower's clipping mods, which need "
            'the arrays of an update: use FedPW(upload="dense") with them'
        )
