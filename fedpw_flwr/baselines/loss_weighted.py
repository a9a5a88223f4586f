"""What the methods that weigh clients by their loss share: which loss that is.

AFL, TERM and q-FFL are written in F_k(w), the loss of the model that *arrives* at a client over all
of its training data. What clients usually report is the mean over their local steps, which is lower
the better they train, and most so where they overfit. Clients of this package's app report both,
and spend the pass over their data that the first takes only where the server asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fedpw_flwr.baselines.screened import ScreenedStrategy
from fedpw_flwr.wire.records import INITIAL_LOSS, REPORT_INITIAL_LOSS

__all__ = ["LossWeightedStrategy"]


class LossWeightedStrategy(ScreenedStrategy):
    """A strategy that cannot do without losses, and asks clients for F_k(w) if it is to take that.

    With ``train_loss_key="initial_loss"`` the configuration of every training message holds
    ``report-initial-loss``, to which the clients of this package's app answer; with any other key
    nothing is asked, and the metric of that name is taken as the loss. The default is the mean over
    a client's local steps, which any client can report; ``"initial_loss"`` is the methods' own.
    """

    @property
    def needs_loss(self) -> bool:
        """Whether a reply without the training loss is broken."""
        return True

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and send them the model, with the question for its loss."""
        if self.train_loss_key == INITIAL_LOSS:
            config = ConfigRecord({**config, REPORT_INITIAL_LOSS: True})
        return super().configure_train(server_round, arrays, config, grid)
