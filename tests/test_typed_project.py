"""A project under `mypy --strict` sees the package's own types, as ``py.typed`` promises."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from fedpw_flwr import FedPW, MissingLossError
from fedpw_flwr.fairness import fairness_report

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = FedPW(fraction_train=0.5, beta=0.2, adjustment="client", max_weight=None)
    try:
        result = strategy.start(grid, ArrayRecord(), num_rounds=2)
    except MissingLossError as error:
        raise SystemExit(str(error)) from error
    reveal_type(strategy)
    reveal_type(result)
    reveal_type(fairness_report([0.5, 0.7]).worst)
"""

CLIENT = """
from flwr.app import Context
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

from fedpw_flwr import FedPWClient, FedPWMod, fedpw_mod, numpy_client_app


def client(context: Context) -> FedPWClient:
    return FedPWClient(NumPyClient(), client_id=int(context.node_config["partition-id"]))


reveal_type(numpy_client_app(client))
reveal_type(fedpw_mod)
app = ClientApp(mods=[fedpw_mod, FedPWMod(device="cpu")])
"""

LEGACY = """
from flwr.server import ServerAppComponents, ServerConfig

from fedpw_flwr.legacy import FedPW

strategy = FedPW(array_names=["weight", "bias"], train_loss_key="loss")
reveal_type(strategy)
ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=2))
"""


def mypy(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", folder.parent / "cache", "."],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.long
def test_a_typed_project_is_checked_against_the_packages_types(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name, code in (("server", SERVER), ("client", CLIENT), ("old_server", LEGACY)):
        (folder / f"{name}.py").write_text(code)
    done = mypy(folder)
    assert done.returncode == 0, done.stdout
    revealed = done.stdout.replace("builtins.", "")
    for kind in (
        "fedpw_flwr.strategy.fedpw.FedPW",
        "flwr.serverapp.strategy.result.Result",
        "fedpw_flwr.legacy.strategy.FedPW",
        "float",
        "fedpw_flwr.client.mod.FedPWMod",
    ):
        assert f'Revealed type is "{kind}"' in revealed
    assert '"Any"' not in revealed

    (folder / "server.py").write_text(SERVER.replace("beta=0.2", 'beta="small"'))
    wrong = mypy(folder)
    assert wrong.returncode == 1
    assert '"beta" to "FedPW" has incompatible type "str"; expected "float"' in wrong.stdout
