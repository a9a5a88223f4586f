"""A profiled run in earnest: Ray's workers, Flower's network, the command's last words."""

import re
from dataclasses import dataclass

import pytest
from matplotlib.image import imread
from support.commands import typed

from fedpw_flwr.lab.runs.run_folder import RunFolder
from fedpw_flwr.wire.timings import IDLE

pytestmark = pytest.mark.long


@dataclass(frozen=True)
class Profiled:
    """A run of the command that came to its end."""

    output: str
    folder: RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    somewhere = tmp_path_factory.mktemp("profiled")
    words = ("rounds=3", "runtime.profile=true", "runtime.total_cpus=2", "hydra.run.dir=run")
    done = typed("fedpw", *words, folder=somewhere)
    return Profiled(done.stdout, RunFolder(somewhere / "run"))


def test_every_round_knows_both_workers_and_every_client(run: Profiled) -> None:
    initial, *trained = run.folder.read_rounds()
    assert initial.profile is None
    assert len(trained) == 3
    for record in trained:
        profile = record.profile
        assert profile is not None
        assert profile.clients.id == list(range(8))
        assert profile.num_workers == 2
        assert profile.seconds == pytest.approx(record.seconds, abs=1e-3)
        assert all(seconds > 0 for seconds in profile.clients.seconds["train"])
        assert all(seconds > 0 for seconds in profile.clients.seconds["adjust"])


def test_two_workers_share_the_clients_work(run: Profiled) -> None:
    for record in run.folder.read_rounds()[2:]:  # in the first, one worker may start much later
        assert record.profile is not None
        workers = record.profile.workers
        busy = sum(workers.values()) - workers[IDLE]
        # Two at a time: the work fits into the time that both had, and not into that of one alone.
        assert busy <= 2 * record.profile.server["clients"] + 1e-3
        assert busy > record.profile.server["clients"]


def test_workers_are_set_up_before_the_first_round(run: Profiled) -> None:
    for record in run.folder.read_rounds()[1:]:
        assert record.profile is not None
        workers = record.profile.workers
        assert workers["set_up"] < 0.2 * workers["train"]


def test_the_command_says_where_the_time_went(run: Profiled) -> None:
    server, workers = (line for line in run.output.splitlines() if line.startswith("wh"))
    assert re.match(r"where a round's time went \(mean of rounds 2 to 3, [\d.]+ s\): ", server)
    assert all(f"{phase} " in server for phase in ("clients", "aggregate", "evaluate"))
    assert workers.startswith("what 2 workers did meanwhile: ")
    assert all(f"{phase} " in workers for phase in ("train", "adjust", "idle"))


def test_the_picture_is_there_with_something_on_it(run: Profiled) -> None:
    picture = imread(run.folder.path / "profile.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.02
