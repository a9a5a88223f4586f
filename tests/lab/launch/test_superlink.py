"""A private SuperLink disturbs nobody and leaves nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedpw_flwr.lab.launch.superlink import (
    LocalSuperLink,
    SuperLinkError,
    make_scratch_folder,
    private_environment,
    scripts_folder,
)


def _started_by(pid: int) -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process(pid).children(recursive=True)
        # Python's own, left by a test that used multiprocessing.
        if not any("resource_tracker" in word for word in process.cmdline())
    ]


def _alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [
        process
        for process in processes
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_two_at_a_time_have_their_own_port_home_and_end(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path, make_scratch_folder()) as first:
        with LocalSuperLink(tmp_path, make_scratch_folder()) as second:
            first.wait_until_ready()
            second.wait_until_ready()
            assert first.port != second.port
            assert first.environment["FLWR_HOME"] != second.environment["FLWR_HOME"]
            everything = _started_by(os.getpid())
            second_scratch = second.scratch
        assert not second_scratch.exists()
        assert first.lost_process() is None
        first.wait_until_ready()
    assert _alive(everything) == []
    assert not first.scratch.exists()


def test_processes_end_when_the_launching_process_is_killed(tmp_path: Path) -> None:
    scratch = make_scratch_folder()
    script = (
        "import sys, time; from pathlib import Path\n"
        "from fedpw_flwr.lab.launch.superlink import LocalSuperLink\n"
        "with LocalSuperLink(Path(sys.argv[1]), Path(sys.argv[2])) as superlink:\n"
        "    superlink.wait_until_ready(); print('ready', flush=True); time.sleep(600)\n"
    )
    launching = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(scratch)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert launching.stdout is not None
    assert launching.stdout.readline() == "ready\n"
    processes = _started_by(launching.pid)
    assert len(processes) >= 3
    launching.send_signal(signal.SIGKILL)
    launching.wait()
    launching.stdout.close()
    deadline = time.monotonic() + 20
    while (_alive(processes) or scratch.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _alive(processes) == []
    assert not scratch.exists()


def test_processes_end_even_when_the_guard_is_killed(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path, make_scratch_folder()) as superlink:
        superlink.wait_until_ready()
        processes = _started_by(os.getpid())
        guard = next(p for p in processes if any("process_guard" in word for word in p.cmdline()))
        guard.kill()
        guard.wait()
        assert superlink.lost_process() == "flower-superlink"
    assert _alive(processes) == []


def test_lost_process_names_the_one_that_ended(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path, make_scratch_folder()) as superlink:
        superlink.wait_until_ready()
        assert superlink.lost_process() is None
        superexec = next(
            process
            for process in _started_by(os.getpid())
            if any(word.endswith("flower-superexec") for word in process.cmdline())
        )
        superexec.kill()
        while _alive([superexec]):
            time.sleep(0.05)
        assert superlink.lost_process() == "flower-superexec"


def test_a_superlink_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path, make_scratch_folder()) as superlink:
        superlink.wait_until_ready()
        (tmp_path / "flwr.py").write_text("raise ImportError('this flwr is broken')")
    broken = LocalSuperLink(tmp_path, make_scratch_folder())
    with broken, pytest.raises(SuperLinkError, match="this flwr is broken"):
        broken.wait_until_ready()


def test_waiting_ends_after_the_time_given(tmp_path: Path) -> None:
    superlink = LocalSuperLink(tmp_path, make_scratch_folder())
    with superlink, pytest.raises(SuperLinkError, match=r"within 0 s. Is the machine overloaded"):
        superlink.wait_until_ready(seconds=0.0)
    assert not superlink.scratch.exists()


def test_environment_leads_to_no_other_superlink_and_no_other_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_HOME", "/elsewhere")
    monkeypatch.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "39091")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.setenv("PATH", "/usr/bin")
    environment = private_environment(tmp_path, tmp_path / "app", "x")
    assert environment["FLWR_HOME"] == str(tmp_path / "flwr")
    assert "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT" not in environment
    assert environment["RAY_ADDRESS"] == "local"
    assert environment["RAY_TMPDIR"] == str(tmp_path / "ray")
    assert environment["PYTHONPATH"] == os.pathsep.join([str(tmp_path / "app"), "/somewhere"])
    assert environment["NO_PROXY"] == "example.org,127.0.0.1,localhost"
    assert environment["PATH"] == os.pathsep.join([str(scripts_folder()), "/usr/bin"])
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "http_proxy"])
@pytest.mark.parametrize("url", ["socks5h://10.0.0.1:1080", "SOCKS4://h:1", "socks://h:1080/"])
@pytest.mark.parametrize("ray_address", [None, "192.168.0.10:6379"])
def test_a_proxy_that_flowers_client_cannot_use_is_kept_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, url: str, ray_address: str | None
) -> None:
    monkeypatch.setenv(name, url)
    environment = private_environment(tmp_path, tmp_path / "app", "x", ray_address)
    assert name not in environment
    assert os.environ[name] == url


@pytest.mark.parametrize("url", ["http://proxy.example.org:3128", "HTTPS://p:1", "proxy:3128"])
def test_a_proxy_for_downloads_stays_and_flower_goes_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    names = ("HTTP_PROXY", "https_proxy", "All_Proxy")
    for name in names:
        monkeypatch.setenv(name, url)
    monkeypatch.setenv("no_proxy", "[::1],.example.org")
    environment = private_environment(tmp_path, tmp_path / "app", "x")
    assert {environment[name] for name in names} == {url}
    assert environment["no_proxy"] == "::1,.example.org,127.0.0.1,localhost"
    made = "import httpx; httpx.Client()"
    subprocess.run([sys.executable, "-c", made], env=environment, check=True)


def test_what_flower_writes_is_read_as_utf8_whatever_the_terminal_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    environment = private_environment(tmp_path, tmp_path / "app", "x")
    written = subprocess.run(
        [sys.executable, "-c", "print('Wörter └──> ∅')"],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert written.stdout.decode("utf-8") == "Wörter └──> ∅\n"


def test_scratch_folder_is_short_enough_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 10)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    scratch = make_scratch_folder()
    scratch.rmdir()
    assert len(str(scratch)) <= 30
