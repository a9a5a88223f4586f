"""Run the app on Flower's simulation, safely, and tell truthfully how it ended.

`flwr run` returns 0 whether the run succeeded or not, shares a SuperLink with whatever was started
before and waits for ever if a process dies. `launch` stages the app, runs it on a SuperLink of its
own, watches the processes, and reports the status that Flower itself recorded. Ctrl-C stops the run
and leaves no process behind; a second one does so without waiting.
"""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import tomli_w
from rich.text import Text

from fedpw_flwr.lab.config.configuration import PREPARED_VARIABLE
from fedpw_flwr.lab.launch.progress import RunProgress
from fedpw_flwr.lab.launch.ray_cluster import leave_behind_if_large
from fedpw_flwr.lab.launch.run_log import explain_failure
from fedpw_flwr.lab.launch.staging import stage_app
from fedpw_flwr.lab.launch.superlink import (
    CONNECTION,
    LocalSuperLink,
    make_scratch_folder,
    scripts_folder,
)
from fedpw_flwr.lab.runs.run_folder import METRICS_FILE

LOG_NAME = "flower.log"

_POLL_SECONDS = 0.2
_CHECK_PROCESSES_SECONDS = 2.0

# Flower's log stream ends about 1 s after the simulation does.
_LOST_PROCESS_PATIENCE_SECONDS = 15.0


@dataclass(frozen=True)
class ClientResources:
    """What the simulation may use: Flower's number of SuperNodes, and what Ray reserves for each.

    `total_cpus` are the cores that Ray may fill with clients. None: those of the machine (of the
    container, where it is given fewer), but no more than all clients together take, since Flower
    starts a process for every client that fits, whether there is one to run or not. A Ray cluster
    (`ray_address`) decides that itself. `RuntimeSettings` has checked the values.
    """

    num_clients: int
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0
    total_cpus: int | None = None
    ray_address: str | None = None

    def federation_config(self) -> str:
        """Write the resources as `flwr run --federation-config` takes them."""
        settings = {
            "num-supernodes": self.num_clients,
            "client-resources-num-cpus": self.cpus_per_client,
            "client-resources-num-gpus": float(self.gpus_per_client),
        }
        if self.ray_address is None:
            settings["init-args-num-cpus"] = self.total_cpus or self._useful_cpus()
        return " ".join(f"{key}={value}" for key, value in settings.items())

    def _useful_cpus(self) -> int:
        # A third of a second, which nothing that only imports this module should pay.
        from joblib import cpu_count  # type: ignore[import-untyped]

        useful = min(int(cpu_count()), self.num_clients * self.cpus_per_client)
        # On a machine smaller than one client, that client has to make do with what there is.
        return max(useful, self.cpus_per_client)


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended, and after how many seconds.

    `status` is Flower's own word, ``finished:completed`` or ``finished:failed``; ``not-started`` if
    Flower refused the run, ``process-died`` if a process was lost on the way. `error` holds the
    lines of the log that say what went wrong.
    """

    status: str
    error: str
    log_file: Path
    seconds: float

    @property
    def completed(self) -> bool:
        """Whether Flower recorded the run as completed."""
        return self.status == "finished:completed"


def launch(
    run_config: Mapping[str, str | bool],
    resources: ClientResources,
    *,
    output_folder: Path,
    rounds: int,
    app_folder: Path | None = None,
    extra_config_folder: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> RunOutcome:
    """Run the app once and wait for it; a failed run is an outcome, not an exception.

    `flower.log` goes into `output_folder`, and `metrics.jsonl` is expected there. `app_folder` is a
    Flower app to run instead of this package's own, which `stage_app` puts together with the user's
    hydra files in `extra_config_folder`. `check` is called while Flower boots, with the file in
    which the run's processes look for a prepared experiment; what it raises ends the launch.

    Raises
    ------
    StagingError, SuperLinkError
        If the run could not be started.
    KeyboardInterrupt, SystemExit
        After Ctrl-C, or after a SIGTERM or SIGHUP (with status 128 + the signal's number), when
        all processes have ended.
    """
    # Put the app into a folder of its own
    started = time.monotonic()
    output_folder = output_folder.resolve()
    output_folder.mkdir(parents=True, exist_ok=True)
    scratch = make_scratch_folder()
    try:
        app = scratch / "app"
        if app_folder is None:
            stage_app(app, extra_config_folder)
        else:
            shutil.copytree(app_folder, app)

        # Check the experiment while Flower boots
        display = RunProgress(output_folder / METRICS_FILE, rounds)
        with (
            _signals_as_exceptions(),
            LocalSuperLink(app, scratch, resources.ray_address) as superlink,
            display,
        ):
            display.say("starting Flower")
            if check is not None:
                prepared = Path(superlink.environment[PREPARED_VARIABLE])
                check(prepared)
                if resources.ray_address is not None:
                    leave_behind_if_large(prepared)
            # Counting cores imports joblib, which fits in while Flower boots.
            federation = resources.federation_config()
            superlink.wait_until_ready()

            # Run it
            with _Run(superlink, output_folder / LOG_NAME) as run:
                try:
                    status, error = run.follow(run_config, federation, display)
                except BaseException as reason:
                    display.say("stopping")
                    run.stop()
                    run.note(f"stopped: {type(reason).__name__}")
                    raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return RunOutcome(status, error, output_folder / LOG_NAME, time.monotonic() - started)


class _Run:
    """One run on a SuperLink: the `flwr run --stream` process and what it writes."""

    def __init__(self, superlink: LocalSuperLink, log_file: Path) -> None:
        self._superlink = superlink
        self._log = log_file.open("a", encoding="utf-8")
        self._recent: deque[str] = deque(maxlen=2000)
        self._run_id: str | None = None
        self._process: subprocess.Popen[str] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._reader.join(timeout=2.0)
        self._log.close()

    def note(self, text: str) -> None:
        """Add a line of our own to the log."""
        self._log.write(f"fedpw: {text}\n")
        self._log.flush()

    def follow(
        self, run_config: Mapping[str, str | bool], federation: str, display: RunProgress
    ) -> tuple[str, str]:
        """Submit the run, wait for its end, return its status and error."""
        self._submit(run_config, federation)
        assert self._process is not None
        lost: str | None = None
        lost_since = next_check = time.monotonic()
        while self._process.poll() is None:
            display.update()
            now = time.monotonic()
            if now >= next_check:
                next_check = now + _CHECK_PROCESSES_SECONDS
                found = self._superlink.lost_process()
                lost_since = now if found is None or found != lost else lost_since
                lost = found
                if lost and now - lost_since > _LOST_PROCESS_PATIENCE_SECONDS:
                    break
            time.sleep(_POLL_SECONDS)
        display.update()
        self._reader.join(timeout=5.0)
        return self._outcome(lost)

    def stop(self) -> None:
        """Tell Flower to stop the run, if it was started."""
        if self._run_id is not None and self._superlink.lost_process() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._flwr("stop", self._run_id, CONNECTION, timeout=10.0)

    def _submit(self, run_config: Mapping[str, str | bool], federation: str) -> None:
        # A TOML file, because Flower's parser for the command line stumbles over quotes.
        settings = self._superlink.scratch / "run-config.toml"
        settings.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        self._process = subprocess.Popen(
            [
                *(str(scripts_folder() / "flwr"), "run", str(self._superlink.app_folder)),
                *(CONNECTION, "--stream", "--run-config", str(settings)),
                *("--federation-config", federation),
            ],
            cwd=self._superlink.app_folder,
            env=dict(self._superlink.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            plain = Text.from_ansi(line).plain + "\n"
            if self._run_id is None and (found := re.search(r"started run (\d+)", plain)):
                self._run_id = found[1]
            self._recent.append(plain.rstrip("\n"))
            self._log.write(plain)
            self._log.flush()

    def _outcome(self, lost: str | None) -> tuple[str, str]:
        record = self._recorded() if lost != "flower-superlink" else None
        if record is None and lost is None:
            # A killed SuperLink breaks the log stream off before the next look at the processes.
            lost = self._superlink.lost_process()
        while record is not None and not record["status"].startswith("finished") and lost is None:
            # The log stream broke off before the run did.
            time.sleep(_CHECK_PROCESSES_SECONDS)
            lost = self._superlink.lost_process()
            record = self._recorded()
        if record is not None and record["status"].startswith("finished"):
            status, details = record["status"], record["status-details"]
            details = "" if details == "N/A" else details
        else:
            status, details = ("not-started", "") if lost is None else ("process-died", "")
        self.note(f"Flower's status of the run: {status}")
        if status == "finished:completed":
            return status, ""
        if not status.startswith("finished"):
            self.note(f"the end of the SuperLink's own log:\n{self._superlink.log_tail(40)}")
        return status, self._explain(status, details, lost)

    def _explain(self, status: str, details: str, lost: str | None) -> str:
        if status == "process-died":
            return (
                f"The process {lost} ended before the run did. If the system killed it, memory ran "
                "out: lower the number of clients at a time (total_cpus) or the batch size."
            )
        scratch = self._superlink.scratch
        installed = sorted((scratch / "flwr" / "apps").glob("*"))
        folders = [str(folder) for folder in (*installed, self._superlink.app_folder)]
        return explain_failure(list(self._recent), details, folders)

    def _recorded(self) -> dict[str, Any] | None:
        """Ask Flower for the run's record; None if there is no run or no answer."""
        try:
            answer = self._flwr("list", CONNECTION, "--format", "json", timeout=60.0)
            runs = json.loads(answer[answer.index("{") :])["runs"]
        except (ValueError, KeyError, subprocess.TimeoutExpired):
            return None
        return next((dict(run) for run in runs), None)

    def _flwr(self, *arguments: str, timeout: float) -> str:
        return subprocess.run(
            [str(scripts_folder() / "flwr"), *arguments],
            cwd=self._superlink.app_folder,
            env=dict(self._superlink.environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            check=False,
            timeout=timeout,
        ).stdout


@contextlib.contextmanager
def _signals_as_exceptions() -> Iterator[None]:
    """Let a SIGTERM or SIGHUP unwind the stack, as Ctrl-C does, instead of ending the process."""

    def unwind(signal_number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + signal_number)

    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; elsewhere the guard alone clears up.
        yield
        return
    previous = {
        number: signal.getsignal(number)
        for number in (signal.SIGTERM, signal.SIGHUP)
        # `nohup` ignores the hang-up on purpose.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    for number in previous:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
