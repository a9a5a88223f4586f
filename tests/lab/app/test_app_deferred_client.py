"""The ClientApp that the command names: light to load, and then the real one."""

from __future__ import annotations

import pickle
import subprocess
import sys

from support.app_federation import client_context, initial_arrays, message_to, over_the_wire
from support.records import payloads

from fedpw_flwr.lab.app.client_app import app as client_app
from fedpw_flwr.lab.app.deferred_client_app import app


def test_loading_it_imports_no_pytorch() -> None:
    code = (
        "import sys; from fedpw_flwr.lab.app.deferred_client_app import app\n"
        "assert not {'torch', 'hydra', 'fedpw_flwr.lab.app.client_app'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_answers_as_the_real_one_also_after_a_journey_to_a_worker() -> None:
    arrays = initial_arrays()
    travelled = pickle.loads(pickle.dumps(app))
    for kind in ("train", "evaluate"):
        real, deferred, there = (
            one(over_the_wire(message_to(1, arrays, kind)), client_context(1)).content
            for one in (client_app, app, travelled)
        )
        assert not real.keys() ^ deferred.keys()
        for content in (deferred, there):
            assert content["metrics"] == real["metrics"]
            if kind == "train":
                assert payloads(content["arrays"]) == payloads(real["arrays"])
