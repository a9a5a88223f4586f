"""The ClientApp that the command names to Flower: imported in earnest with the first message.

Flower's simulation loads the ClientApp in its own process, only to see whether that works, and
starts Ray after it. Importing PyTorch there would keep Ray, and so the first round, waiting for
seconds in which Ray's processes can start.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

__all__ = ["app"]


class _DeferredClientApp(ClientApp):
    def __call__(self, message: Message, context: Context) -> Message:
        from fedpw_flwr.lab.app.client_app import app as client_app

        return client_app(message, context)


app = _DeferredClientApp()
