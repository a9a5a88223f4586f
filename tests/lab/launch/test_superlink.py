"""A private SuperLink disturbs nobody and leaves nothing."""

import os
import subprocess
import sys
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


def test_processes_end_even_when_the_guard_is_killed(tmp_path: Path) -> None:
    with LocalSuperLink(tmp_path, make_scratch_folder()) as superlink:
        superlink.wait_until_ready()
        assert superlink.lost_process() is None
        processes = psutil.Process().children(recursive=True)
        guard = next(p for p in processes if any("process_guard" in word for word in p.cmdline()))
        family = [guard, *guard.children(recursive=True)]
        guard.kill()
        guard.wait()
        assert superlink.lost_process() == "flower-superlink"
    ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    assert [one for one in family if one.is_running() and one.status() not in ended] == []
    assert not superlink.scratch.exists()


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


@pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
@pytest.mark.parametrize("url", ["socks5h://10.0.0.1:1080", "SOCKS4://h:1", "socks://h:1080/"])
def test_a_proxy_that_flowers_client_cannot_use_is_kept_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, url: str
) -> None:
    monkeypatch.setenv(name, url)
    assert name not in private_environment(tmp_path, tmp_path / "app", "x")
    assert name not in private_environment(tmp_path, tmp_path / "app", "x", "192.168.0.10:6379")
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
    command = [sys.executable, "-c", "print('Wörter └──> ∅')"]
    assert subprocess.check_output(command, env=environment).decode() == "Wörter └──> ∅\n"


def test_scratch_folder_is_short_enough_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("deep" * 10)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    scratch = make_scratch_folder()
    scratch.rmdir()
    assert len(str(scratch)) <= 30
