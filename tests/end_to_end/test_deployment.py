"""`examples/deployment` on this machine: its scripts, TLS, registered keys, and what breaks."""

from __future__ import annotations

import configparser
import ipaddress
import json
import os
import re
import shlex
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml  # type: ignore[import-untyped]
from cryptography import x509
from safetensors.torch import load_file
from support.commands import COMMANDS, QUIET, free_ports, marked, typed
from support.pages import block, commands

from fedpw_flwr.checkpoint import CheckpointStore
from fedpw_flwr.lab.config.configuration import config_folder

EXAMPLE = config_folder().parent / "examples" / "deployment"
SITES = {1, 2, 3}
WEAK = 3
ROUNDS = 3
TIMEOUT = 180
"""Seconds that the server waits for replies; a killed node is missed after a minute."""


def make_keys(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = EXAMPLE / "make_keys.sh"
    return typed(script, folder, *words, folder=folder.parent, status=None, timeout=60)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_readable_to_their_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    for words in (("ca",), ("server", "fedpw.example.org"), ("site", "clinic-a", "clinic-b")):
        assert make_keys(folder, *words).returncode == 0
    assert mode(folder) == 0o700
    private = {"ca.key", "server.key", "clinic-a.key", "clinic-b.key"}
    public = {"ca.crt", "server.crt", "clinic-a.pub", "clinic-b.pub"}
    assert {path.name for path in folder.iterdir()} == private | public
    assert {mode(folder / name) for name in private} == {0o600}
    assert {mode(folder / name) for name in public} == {0o644}


@pytest.mark.parametrize("words", [("ca",), ("server", "192.0.2.1"), ("site", "clinic-a")])
def test_no_key_is_overwritten(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = tmp_path / "keys"
    for first in (("ca",), ("server", "192.0.2.1"), ("site", "clinic-a")):
        make_keys(folder, *first)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = make_keys(folder, *words)
    assert again.returncode == 1
    assert "exists: move it away first" in again.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_site_needs_no_authority_for_its_key(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", "site", "clinic-c")
    assert made.returncode == 0
    assert (tmp_path / "keys" / "clinic-c.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert "to the machine of clinic-c, nowhere else" in made.stdout


def test_the_certificate_is_for_the_names_given_and_for_the_server_itself(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder, "ca")
    made = make_keys(folder, "server", "fedpw.example.org", "192.0.2.7", "2001:db8::1")
    assert made.returncode == 0
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"localhost", "fedpw.example.org"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {
        ipaddress.ip_address(address) for address in ("127.0.0.1", "192.0.2.7", "2001:db8::1")
    }
    subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver"),
            *("-CAfile", folder / "ca.crt", folder / "server.crt"),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "words", [("server",), ("site",), ("ca", "name"), ("sites", "a"), ("site", "../a")]
)
def test_what_is_not_meant_makes_no_key(tmp_path: Path, words: tuple[str, ...]) -> None:
    folder = tmp_path / "keys"
    assert make_keys(folder, *words).returncode in (1, 2)
    assert not folder.exists() or not any(folder.iterdir())


@pytest.mark.parametrize("kind", ["superlink", "supernode"])
def test_the_unit_runs_the_script_with_its_settings_as_a_user_of_its_own(kind: str) -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLE / "systemd" / f"fedpw-{kind}.service")
    service = unit["Service"]
    assert service["ExecStart"] == f"/opt/fedpw/deployment/{kind}.sh /etc/fedpw/{kind}.env"
    assert service["User"] == "fedpw"
    assert service["Restart"] == "always"
    assert service["ProtectSystem"] == "strict"
    assert service["NoNewPrivileges"] == "yes"


@pytest.mark.parametrize(("kind", "side"), [("superlink", "server"), ("supernode", "site")])
def test_the_container_runs_the_script_with_its_settings(kind: str, side: str) -> None:
    compose = yaml.safe_load((EXAMPLE / "docker" / f"compose.{side}.yaml").read_text())
    service = compose["services"][kind]
    settings = f"/etc/fedpw/{kind}.env"
    assert service["command"] == [f"/opt/fedpw/{kind}.sh", settings]
    assert f"./{kind}.env:{settings}:ro" in service["volumes"]
    image = (EXAMPLE / "docker" / "Dockerfile").read_text()
    assert f"examples/deployment/{kind}.sh" in image
    for copied in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", image, re.MULTILINE):
        assert all((EXAMPLE.parents[1] / path).exists() for path in copied.split())


@pytest.mark.parametrize("kind", ["superlink", "supernode"])
@pytest.mark.parametrize("way", ["systemd", "docker"])
def test_the_settings_are_all_that_the_script_needs(kind: str, way: str, tmp_path: Path) -> None:
    """The script is run with a command in Flower's place that says how it was called."""
    commands = tmp_path / "bin"
    commands.mkdir()
    told = commands / f"flower-{kind}"
    told.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    told.chmod(0o755)
    given = (EXAMPLE / way / f"{kind}.env").read_text()
    settings = tmp_path / "settings"
    settings.write_text(f"{given}\nBIN={commands}\nSTATE={tmp_path / 'state'}\n")
    words = typed(EXAMPLE / f"{kind}.sh", settings, folder=tmp_path).stdout.splitlines()
    options = dict(pairwise(words))
    if kind == "superlink":
        assert options["--ssl-keyfile"] == "/etc/fedpw/keys/server.key"
        assert options["--database"] == f"{tmp_path}/state/superlink.db"
        assert "--enable-supernode-auth" in words
    else:
        assert options["--node-config"] == "data='/srv/fedpw' site=1"
        assert options["--auth-supernode-private-key"] == "/etc/fedpw/keys/site-1.key"
    assert "--insecure" not in words


@dataclass(frozen=True)
class Federation:
    """The federation that ``one_machine.sh`` keeps running."""

    folder: Path
    port: int
    environment: Mapping[str, str]

    @property
    def run_folder(self) -> Path:
        return self.folder / "server" / "digits"

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.run_folder / "checkpoints")

    def flwr(self, *words: str) -> str:
        done = subprocess.run(
            [COMMANDS / "flwr", *words],
            cwd=self.folder.parent,
            env=dict(self.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def start_run(self, *, resume: bool) -> str:
        """Start the run that the README shows, with fewer rounds and without staying to watch."""
        shown = (line for line in commands(block("bash", "try/operator")) if "flwr run" in line)
        _, *words = shlex.split(next(shown).replace("$PWD", str(self.folder.parent)))
        words.remove("--stream")
        words[-1] += f" num-server-rounds={ROUNDS} timeout={TIMEOUT} resume={str(resume).lower()}"
        return str(self.ask(*words)["run-id"])

    def ask(self, *words: str) -> dict[str, Any]:
        """Give what a command answers; it ends with 0 where the SuperLink does not answer, too."""
        answer: dict[str, Any] = json.loads(self.flwr(*words, "--format", "json"))
        assert answer["success"], answer
        return answer

    def status(self, run_id: str) -> str:
        runs = self.ask("list", "fedpw")["runs"]
        (status,) = [run["status"] for run in runs if run["run-id"] == run_id]
        return str(status)

    def has_ended(self, run_id: str) -> bool:
        return self.status(run_id).startswith("finished")

    def nodes(self) -> dict[str, str]:
        """Status by node id."""
        listed = self.ask("supernode", "list", "fedpw")
        return {node["node-id"]: node["status"] for node in listed["nodes"]}

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def kill(self, name: str) -> None:
        """Kill a process as the README shows it."""
        (line,) = (line for line in commands(block("bash", "kill -9")) if f"{name}.pid" in line)
        subprocess.run(["bash", "-ec", line], cwd=self.folder.parent, check=True, timeout=10)

    def wait(self, what: str, happened: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(AssertionError, OSError):
                if result := happened():
                    return result
            time.sleep(1)
        logs = "\n".join(
            f"== {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log")
        )
        pytest.fail(f"{what}: not in {seconds:.0f} s\n{logs}")


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("one machine") / "try"
    (folder.parent / "examples").symlink_to(EXAMPLE.parent)
    environment = {name: value for name, value in os.environ.items() if name[:5] != "FLWR_"} | {
        **QUIET,
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "operator"),
    }
    with marked() as mark:
        made = Federation(folder, free_ports(4), environment | mark)
        command = subprocess.Popen(
            ["bash", "-c", f"exec {block('bash', 'one_machine.sh try')}"],
            cwd=folder.parent,
            env={**made.environment, "PORT": str(made.port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert command.stdout is not None
        printed = []
        for line in command.stdout:
            printed.append(line)
            if "flwr run" in line:
                break
        else:
            pytest.fail("".join(printed))
        made.wait("all sites online", lambda: [*made.nodes().values()] == ["online"] * 3, 120)
        yield made
        command.terminate()
        with suppress(subprocess.TimeoutExpired):
            command.wait(30)


@dataclass(frozen=True)
class Story:
    """What was seen while the federation trained, and lost a site, and then its server."""

    nodes_before: Mapping[str, str]
    nodes_after: Mapping[str, str]
    weak_node_ids: list[str]
    memory: Mapping[str, Sequence[float]]
    """What FedPW remembers of the weak site's loss: in its last round, away, and back."""
    broken_off: str
    rounds_before: int
    finished: str
    log: str
    metrics: Mapping[str, Mapping[str, Any]]


def memory_of_weak_site(federation: Federation, server_round: int) -> list[float]:
    state = federation.checkpoints.load(server_round).state["strategy"]["weighting"]
    assert {int(client) for client in state["loss"]["clients"]} == SITES
    remembered: list[float] = state["loss"]["clients"][str(WEAK)]
    return remembered


def who_trained(federation: Federation, server_round: int) -> set[int]:
    metrics = federation.checkpoints.load(server_round).state["metrics"]
    return set(metrics["train_metrics_clientapp"][str(server_round)]["fedpw-client-id"])


@pytest.fixture(scope="module")
def story(federation: Federation) -> Story:
    nodes_before = federation.nodes()
    first = federation.start_run(resume=False)

    def trains(times: int) -> bool:
        log = federation.log(f"site-{WEAK}")
        return log.count("Receiving: train message") >= times

    federation.wait("round 1", lambda: 1 in federation.checkpoints.rounds(), 240)
    memory = {"before": memory_of_weak_site(federation, 1)}
    federation.wait("the second training", lambda: trains(2), 120)
    federation.kill(f"site-{WEAK}")
    federation.wait("round 2", lambda: 2 in federation.checkpoints.rounds(), 2 * TIMEOUT + 120)
    assert who_trained(federation, 2) == SITES - {WEAK}
    memory["away"] = memory_of_weak_site(federation, 2)

    federation.wait("the third training", lambda: trains(3), 120)
    federation.kill("superlink")
    rounds_before = federation.checkpoints.rounds()[0]
    federation.wait("a new SuperLink", federation.nodes, 120)
    second = federation.start_run(resume=True)
    metrics_file = federation.run_folder / "metrics.json"
    federation.wait("the metrics of all rounds", metrics_file.exists, 2 * TIMEOUT + 180)
    for run_id in (first, second):
        federation.wait(f"the end of run {run_id}", partial(federation.has_ended, run_id), 120)
    memory["back"] = memory_of_weak_site(federation, ROUNDS)
    assert who_trained(federation, ROUNDS) == SITES
    return Story(
        nodes_before=nodes_before,
        nodes_after=federation.nodes(),
        weak_node_ids=re.findall(r"SuperNode ID: (\d+)", federation.log(f"site-{WEAK}")),
        memory=memory,
        broken_off=federation.status(first),
        rounds_before=rounds_before,
        finished=federation.status(second),
        log=federation.flwr("log", second, "fedpw", "--show"),
        metrics=json.loads(metrics_file.read_text()),
    )


@pytest.mark.long
def test_the_superlink_speaks_tls_that_only_the_authority_vouches_for(
    federation: Federation,
) -> None:
    trusting = ssl.create_default_context(cafile=federation.folder / "keys" / "ca.crt")
    with (
        socket.create_connection(("127.0.0.1", federation.port), timeout=10) as plain,
        trusting.wrap_socket(plain, server_hostname="127.0.0.1") as encrypted,
    ):
        assert encrypted.version() == "TLSv1.3"
    with (
        socket.create_connection(("127.0.0.1", federation.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")


@pytest.mark.long
def test_a_supernode_whose_key_is_not_registered_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    keys = federation.folder / "keys"
    if not (keys / "stranger.key").exists():
        assert make_keys(keys, "site", "stranger").returncode == 0
    settings = tmp_path / "stranger.env"
    known = (federation.folder / "site-1.env").read_text()
    own = {"KEY": "stranger.key", "STATE": str(tmp_path / "state"), "PORT": str(free_ports(1))}
    settings.write_text(
        known + "".join(f"{name}={shlex.quote(value)}\n" for name, value in own.items())
    )
    output = tmp_path / "output"
    with output.open("wb") as stream:
        # Not through a pipe: its helper processes hold that open until their parent is reaped.
        done = subprocess.run(
            [EXAMPLE / "supernode.sh", settings],
            env=dict(federation.environment),
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=90,
            check=False,
        )
    printed = output.read_text()
    assert done.returncode == 1
    assert "Exit Code: 305" in printed
    assert "Failed to activate SuperNode" in printed
    assert len(federation.nodes()) == 3


@pytest.mark.long
def test_the_run_goes_on_without_a_killed_site_and_ends_well(story: Story) -> None:
    assert story.finished == "finished:completed", story.log[-4000:]
    trained = {
        int(server_round): set(record["fedpw-client-id"])
        for server_round, record in story.metrics["train"].items()
    }
    assert trained == {1: SITES, 2: SITES - {WEAK}, 3: SITES}


@pytest.mark.long
def test_a_site_comes_back_under_its_key_as_the_node_it_was(story: Story) -> None:
    assert len(story.weak_node_ids) >= 2
    assert len(set(story.weak_node_ids)) == 1
    assert story.nodes_after.keys() == story.nodes_before.keys()
    assert len(story.nodes_after) == 3


@pytest.mark.long
def test_a_returning_site_still_has_its_weight_history(story: Story) -> None:
    before, away, back = (story.memory[when] for when in ("before", "away", "back"))
    # Share, momentum, mass, and how far time had gone.
    assert before[2] > 0
    assert away == before
    assert back != before
    # It has caught up on the round it missed, and seen another one.
    assert back[2] > before[2]


@pytest.mark.long
def test_a_run_that_died_with_the_superlink_is_gone_on_with_at_the_right_round(
    story: Story,
) -> None:
    assert story.broken_off == "finished:failed"
    assert f"Going on after round {story.rounds_before} of {ROUNDS}" in story.log
    assert [int(number) for number in story.metrics["train"]] == list(range(1, ROUNDS + 1))


@pytest.mark.long
def test_the_model_serves_every_site(federation: Federation, story: Story) -> None:
    last = story.metrics["evaluate"][str(ROUNDS)]
    assert last["fairness-clients"] == 3
    sys.path.insert(0, str(EXAMPLE))
    try:
        task = import_module("deployment.task")
    finally:
        sys.path.remove(str(EXAMPLE))
    net = task.Net().eval()
    net.load_state_dict(load_file(federation.run_folder / "model.safetensors"))
    accuracies = []
    for site in sorted(SITES):
        with np.load(federation.folder / "data" / f"site-{site}" / "data.npz") as archive:
            images, labels = (torch.from_numpy(archive[f"{kind}_test"]) for kind in "xy")
        with torch.no_grad():
            accuracies.append(float((net(images).argmax(1) == labels).float().mean()))
    assert min(accuracies) == pytest.approx(last["fairness-worst"], abs=0.01)
    assert float(np.mean(accuracies)) > 0.8
