"""The command `fedpw-doctor`: whether this machine can run experiments, told in seconds.

    fedpw-doctor
    fedpw-doctor /scratch/outputs

Use it on a new machine, and when a run does not start. Each line says what was looked at, whether
it is as it should be, and what to do where it is not. Nothing is guessed where it can be tried:
files are written, Ray is started.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape

# What stands below is imported by the checks that need it: a part of it may be what is missing.

Found = tuple[Literal["ok", "warn", "fail"], str]
"""How it is, ``fail`` where it stops runs of `fedpw`, and in words with what to do."""

_STYLES = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}
_IMPORTED = ("flwr", "ray", "torch", "torchvision", "numba")
_SHARED_MEMORY = Path("/dev/shm")
_GIB = 2**30
_LITTLE = 2.0  # GiB of a disk


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if something would stop a run, else 0."""
    parser = argparse.ArgumentParser(
        "fedpw-doctor",
        description="Check in seconds whether this machine can run experiments, and say what to "
        "do where it cannot. The exit status is 1 if something would stop a run.",
        epilog="Put the whole text into a bug report. Of this machine it names versions, folders "
        "and proxies (without their passwords), and nothing else.",
    )
    where = "folder that runs are to be written to (default: outputs)"
    parser.add_argument("outputs", nargs="?", type=Path, default=Path("outputs"), help=where)
    outputs = parser.parse_args(arguments).outputs
    console, states = Console(), set()
    for subject, found in _checks(outputs):
        for state, text in found:
            line = f"[{_STYLES[state]}]{state:4}[/]  {subject:9}  {escape(text)}"
            console.print(line, highlight=False, soft_wrap=True)
            states.add(state)
        if subject == "packages" and "fail" in states:
            console.print("The other checks need these packages: run fedpw-doctor again.")
            break
    return int("fail" in states)


def _checks(outputs: Path) -> Iterator[tuple[str, Iterator[Found]]]:
    yield "packages", _packages()
    from fedpw_flwr.lab.data.cache import cache_folder

    yield "ports", _ports()
    yield "proxies", _proxies()
    yield "computing", _processors()
    yield "outputs", _folder(lambda: outputs, "fail", "give another as hydra.run.dir=...")
    yield "temporary", _folder(tempfile.gettempdir, "fail", "give another as TMPDIR")
    yield "cache", _folder(cache_folder, "warn", "give another as FEDPW_CACHE_DIR")
    yield "Ray", _ray()


def _packages() -> Iterator[Found]:
    """Look for all that is needed, directly or not, and import what is made of compiled code."""
    wanted = Requirement("fedpw-flwr[app]")
    for by, need, problem in dict.fromkeys(_unmet(wanted, "fedpw-doctor", set())):
        own = by == wanted.name
        remedy = wanted if own else need
        yield "fail" if own else "warn", f'{by} needs {need}, {problem}: pip install "{remedy}"'
    for name in _IMPORTED:
        try:
            import_module(name)
        except Exception as error:
            # Libraries that do not fit each other raise whatever they like.
            yield "fail", f"{name} cannot be imported: {type(error).__name__}: {error}"
    try:
        from fedpw_flwr.lab.runs.records import installed_versions, package_state
    except ImportError:
        return  # What is missing has been said.

    versions = installed_versions() | {"fedpw_flwr": package_state(), "on": platform.platform()}
    yield "ok", ", ".join(f"{name} {version}" for name, version in versions.items())


def _unmet(wanted: Requirement, by: str, seen: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield who needs what that is missing or has another version, for all that is needed."""
    need = f"{wanted.name}{wanted.specifier}"
    try:
        there = distribution(wanted.name)
    except PackageNotFoundError:
        yield by, need, "which is missing"
        return
    if not wanted.specifier.contains(there.version, prereleases=True):
        yield by, need, f"but {there.version} is installed"
    for extra in ("", *wanted.extras):
        if (part := f"{wanted.name}[{extra}]") in seen:
            continue
        seen.add(part)
        for needed in map(Requirement, there.requires or []):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                yield from _unmet(needed, wanted.name, seen)


def _ports() -> Iterator[Found]:
    """Try the ports that Flower's own commands take; `fedpw` takes any that are free."""
    local = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"
    for command, port, remedy in (
        ("flwr run", os.environ.get(local, "39091"), f"set {local}"),
        ("flower-superlink", "8000", "give it --port"),
        ("flower-supernode", "9094", "give it --port"),
    ):
        try:
            socket.create_server(("127.0.0.1", int(port))).close()
            yield "ok", f"{port} is free for {command}"
        except (OSError, ValueError, OverflowError) as error:
            yield "warn", f"{port} of {command}: {error}. Where that is not Flower itself, {remedy}"


def _proxies() -> Iterator[Found]:
    """See whether Flower's own commands would reach this machine itself; `fedpw` need not."""
    import httpx

    proxies = {kind: url for kind, url in urllib.request.getproxies().items() if kind != "no"}
    named = ", ".join(f"{kind}_proxy={re.sub('[^/]*@', '', url)}" for kind, url in proxies.items())
    try:
        httpx.Client().close()
    except (ImportError, ValueError) as error:
        yield "warn", f"{named}: flwr and SuperNodes cannot use it ({error}): unset it for them"
        return
    asked = {"http", "all"} & proxies.keys() and not urllib.request.proxy_bypass("127.0.0.1")
    remedy = ": flwr would look for this machine there: export no_proxy=127.0.0.1,localhost"
    yield "warn" if asked else "ok", (named or "none") + (remedy if asked else "")


def _processors() -> Iterator[Found]:
    from fedpw_flwr.device import available_device
    from fedpw_flwr.lab.config.configuration import RuntimeSettings
    from fedpw_flwr.lab.config.early_checks import count_gpus, multiplies_bfloat16
    from fedpw_flwr.lab.simulation.ray_processes import usable_cpus

    bfloat16 = {True: "fast", False: "slow", None: "unknown"}[multiplies_bfloat16()]
    yield "ok", f"{usable_cpus(RuntimeSettings())} cores; client.precision=bfloat16: {bfloat16}"
    gpus = count_gpus()
    if not gpus:
        yield "ok", f"GPUs: {'unknown' if gpus is None else 'none'}; clients train on the cores"
        return
    try:
        available_device("cuda")
    except ValueError as error:
        yield "warn", f"GPUs: {gpus}, but {error}, or install the driver that this PyTorch needs"
        return
    import torch

    free, total = (memory / _GIB for memory in torch.cuda.mem_get_info())
    share = "runtime.gpus_per_client=0.25 lets four clients share one, 0 uses none"
    yield (
        "ok",
        f"GPUs: {gpus} ({torch.cuda.get_device_name()}, {free:.1f}/{total:.1f} GiB): {share}",
    )


def _folder(
    named: Callable[[], Path | str], otherwise: Literal["warn", "fail"], remedy: str
) -> Iterator[Found]:
    """Write a file where the folder is, or would be made, and see how much room there is."""
    try:
        folder = Path(named()).absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"written")
        free = shutil.disk_usage(there).free / _GIB
    except (OSError, RuntimeError) as error:
        # It cannot be written, or nothing says where it is.
        yield otherwise, f"{error}: {remedy}"
        return
    little = free < _LITTLE
    yield "warn" if little else "ok", f"{folder}, {free:.1f} GiB free{f': {remedy}' * little}"


def _ray() -> Iterator[Found]:
    """Start Ray and a worker, as runs do, and see where Ray will hold what workers share."""
    from fedpw_flwr.lab.config.configuration import RuntimeSettings
    from fedpw_flwr.lab.simulation.workers import Patience, Workers

    begun = time.monotonic()
    workers = Workers(RuntimeSettings(connect_timeout=60.0), 1, [])
    try:
        workers.call(os.getpid, patience=Patience(60.0)).result()
        yield "ok", f"Ray and a worker started in {time.monotonic() - begun:.1f} s"
        import ray

        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        wanted = resources["object_store_memory"] / _GIB
    except Exception as error:
        # Whatever Ray raises, a run would meet it, too.
        yield "fail", f"Ray or its worker does not start ({type(error).__name__}: {error})"
        return
    finally:
        workers.close()
    free = shutil.disk_usage(_SHARED_MEMORY).free / _GIB if _SHARED_MEMORY.exists() else 0.0
    text = f"{free:.2f} GiB are free in {_SHARED_MEMORY}, Ray wants {wanted:.2f} GiB"
    remedy = f" and takes a disk, slowly: mount more, as docker run --shm-size={wanted:.1f}g"
    yield "warn" if free < wanted else "ok", text + remedy * (free < wanted)
