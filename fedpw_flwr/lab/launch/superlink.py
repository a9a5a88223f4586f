"""A SuperLink of one's own for the length of one run.

`flwr run` shares one detached SuperLink between all runs of a user: it keeps the environment and
the folder of the shell that happened to start it first, and stays when the run is over. A run that
must not depend on what was started before needs a private one: its own port, Flower home, Ray and
folder, nothing installed or reported behind the user's back, and no process left at the end.
"""

import http.client
import importlib.metadata
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil
import tomli_w
from rich.text import Text

from fedpw_flwr.lab.config.configuration import PREPARED_VARIABLE
from fedpw_flwr.lab.launch import process_guard
from fedpw_flwr.lab.launch.ray_cluster import PREPARED_FILE, cluster_environment

CONNECTION = "fedpw-local"
"""Name of the SuperLink connection in the private Flower home."""

_ESSENTIAL = ("flower-superlink", "flower-superexec", "flwr-simulation")

# Ray puts sockets of about 65 characters below its folder, and the system allows 107 in all.
_LONGEST_SCRATCH = 30

_ATTEMPTS = 3


class SuperLinkError(RuntimeError):
    """The private SuperLink did not start, or died; the message ends with its log."""


def make_scratch_folder() -> Path:
    """Create a folder whose path is short enough for Ray's sockets, below ``/tmp`` if need be."""
    base = Path(tempfile.gettempdir()).resolve()
    too_deep = len(str(base / "fedpw-12345678")) > _LONGEST_SCRATCH
    return Path(tempfile.mkdtemp(prefix="fedpw-", dir="/tmp" if too_deep else base)).resolve()


def scripts_folder() -> Path:
    """Return the folder with the commands of the Flower that this Python imports.

    Raises
    ------
    SuperLinkError
        If Flower's commands are not installed.
    """
    beside_python = Path(sys.executable).parent
    installed = [
        Path(str(file.locate()))
        for file in importlib.metadata.distribution("flwr").files or ()
        if file.name == "flower-superlink"
    ]
    for command in (*installed, beside_python / "flower-superlink"):
        if command.is_file():
            return command.parent.resolve()
    raise SuperLinkError(
        f"The command flower-superlink of {sys.executable} is missing. Install Flower into this "
        'environment again: pip install --force-reinstall "flwr[simulation]"'
    )


def private_environment(
    scratch: Path, app_folder: Path, launch: str, ray_address: str | None = None
) -> dict[str, str]:
    """Build the environment of a launch from the caller's own.

    It lacks settings that would lead to another SuperLink or another Ray, and proxies that Flower's
    client would stumble over; `launch` marks every process that has it.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("FLWR_") or name == "FLWR_LOG_LEVEL"
        if not _is_unusable_proxy(name, value)
    }
    environment |= {
        process_guard.MARKER: launch,
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "PYTHONUNBUFFERED": "1",
        # What they write is read as UTF-8, whatever the terminal is.
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": _joined(str(app_folder), environment.get("PYTHONPATH")),
        "PATH": _joined(str(scripts_folder()), environment.get("PATH")),
    }
    if ray_address is None:
        environment |= _own_ray(scratch)
    else:
        environment |= cluster_environment(ray_address, app_folder)
    for name in ("NO_PROXY", "no_proxy"):
        # Flower's client cannot read the brackets of [::1].
        without = environment.get(name, "").translate({ord("["): None, ord("]"): None})
        environment[name] = ",".join(filter(None, [without, "127.0.0.1,localhost"]))
    return environment


def _is_unusable_proxy(name: str, value: str) -> bool:
    """Return whether a variable names a proxy that no process of a launch can work with.

    Flower's HTTP client fails at SOCKS proxies, even those that NO_PROXY keeps away from it, and
    Ray does not know them. HTTP proxies stay, for downloads by a user's model or strategy.
    """
    is_proxy = name.lower() in ("all_proxy", "http_proxy", "https_proxy")
    scheme, separator, _ = value.partition("://")
    return is_proxy and separator != "" and scheme.lower() not in ("http", "https")


def _own_ray(scratch: Path) -> dict[str, str]:
    return {
        PREPARED_VARIABLE: str(scratch / PREPARED_FILE),
        # Without "local", Ray joins any cluster that the user has running on the machine.
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(scratch / "ray"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Flower's actors have a runtime environment, which workers started in advance lack: nobody
        # would ever use these.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
    }


def _joined(first: str, others: str | None) -> str:
    return os.pathsep.join(filter(None, [first, others]))


class LocalSuperLink:
    """A `flower-superlink --simulation` that lives as long as the `with` block.

    Entering starts it and returns at once, so that other work can be done while it boots;
    `wait_until_ready` comes before the first use. Leaving ends it and everything it started, also
    after an error. Should the calling process be killed, the processes end without it.

    `app_folder`, the staged app, is the working folder of every process, so that Ray's clients
    import from it. `scratch`, from `make_scratch_folder`, is removed with everything in it, the log
    included. `ray_address` is the Ray cluster to run clients on; None: a Ray of the launch's own.
    """

    def __init__(self, app_folder: Path, scratch: Path, ray_address: str | None = None) -> None:
        self.app_folder = app_folder
        self.scratch = scratch
        self.log_file = scratch / "superlink.log"
        self.port = 0
        self._launch = uuid.uuid4().hex
        self._environment = private_environment(scratch, app_folder, self._launch, ray_address)
        self._guard: subprocess.Popen[bytes] | None = None
        self._seen: set[str] = set()

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment of every process of this launch, `flwr` commands included."""
        return self._environment

    @property
    def address(self) -> str:
        """Host and port, as `flwr` wants them."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        (self.scratch / "flwr").mkdir(parents=True, exist_ok=True)
        (self.scratch / "ray").mkdir(exist_ok=True)
        self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def wait_until_ready(self, seconds: float = 120.0) -> None:
        """Wait until this SuperLink, and no other on the same port, answers.

        A boot takes about 2 s, and far longer where files are read cold.

        Raises
        ------
        SuperLinkError
            If it ends or does not answer in time. Holds the end of its log.
        """
        deadline = time.monotonic() + seconds
        attempt = 1
        while not (self._is_healthy() and self._owns_port()):
            if self._guard is None or self._guard.poll() is not None:
                if "address already in use" in self.log_tail() and attempt < _ATTEMPTS:
                    # Another program took the port between choosing and using it.
                    attempt += 1
                    self._start()
                    continue
                raise SuperLinkError(f"Flower's SuperLink did not start.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise SuperLinkError(
                    f"Flower's SuperLink did not answer on {self.address} within {seconds:.0f} s. "
                    f"Is the machine overloaded or out of memory?\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def lost_process(self) -> str | None:
        """Return the name of a process that has ended, and without which the run cannot go on.

        "flwr-simulation" also ends when its run is over.
        """
        if self._guard is None or self._guard.poll() is not None:
            return _ESSENTIAL[0]
        alive = {name for process in self._family() if (name := _command_name(process))}
        self._seen |= alive
        return next((name for name in _ESSENTIAL if name in self._seen - alive), None)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log; nothing where there is no log yet."""
        if not self.log_file.is_file():
            return ""
        text = self.log_file.read_text(encoding="utf-8", errors="replace")
        return "\n".join(Text.from_ansi(line).plain for line in text.splitlines()[-lines:])

    def stop(self) -> None:
        """End the SuperLink and all that it started; does nothing the second time.

        Takes up to 3 s, in which running processes may finish what they write. A
        `KeyboardInterrupt` meanwhile kills them at once and is raised again when they are gone.
        """
        guard, self._guard = self._guard, None
        if guard is None:
            return
        assert guard.stdin is not None
        guard.stdin.close()
        try:
            guard.wait(timeout=process_guard.GRACE_SECONDS + 15.0)
        except subprocess.TimeoutExpired:
            guard.terminate()
        except BaseException:
            guard.terminate()
            raise
        finally:
            try:
                guard.wait(timeout=15.0)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.wait()
            # A guard that was killed itself left its work undone.
            process_guard.end_family(self._launch, guard.pid, grace=0.0)
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _start(self) -> None:
        self.port = _free_port()
        (self.scratch / "flwr" / "config.toml").write_text(
            tomli_w.dumps(
                {
                    "superlink": {
                        "default": CONNECTION,
                        CONNECTION: {"address": self.address, "insecure": True},
                    }
                }
            ),
            encoding="utf-8",
        )
        command = [
            *(str(scripts_folder() / "flower-superlink"), "--insecure", "--simulation"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            "--disable-runtime-dependency-installation",
        ]
        with self.log_file.open("wb") as log:
            self._guard = subprocess.Popen(
                # -P keeps the folder of the script, with its module names, off the import path.
                [sys.executable, "-P", process_guard.__file__, str(self.scratch), *command],
                cwd=self.app_folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal reaches the launching process alone, which then ends
                # the others in order.
                start_new_session=True,
            )

    def _family(self) -> list[psutil.Process]:
        return [] if self._guard is None else process_guard.family(self._launch, self._guard.pid)

    def _owns_port(self) -> bool:
        for process in self._family():
            if _command_name(process) == "flower-superlink":
                try:
                    connections = process.net_connections(kind="tcp4")
                except psutil.Error:
                    return False
                return any(
                    connection.status == psutil.CONN_LISTEN and connection.laddr.port == self.port
                    for connection in connections
                )
        return False

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _command_name(process: psutil.Process) -> str | None:
    """Return which of Flower's commands a process runs: its script, not the interpreter."""
    try:
        words = process.cmdline()[:2]
    except psutil.Error:
        return None
    return next((name for word in words if (name := Path(word).name) in _ESSENTIAL), None)
