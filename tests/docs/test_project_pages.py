"""The pages of "Put it into your project": their code is taken from their text, and run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import replace
from importlib.metadata import distribution, requires, version
from pathlib import Path
from typing import Any

import pytest
from flwr.cli.config_utils import load_and_validate
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.commands import COMMANDS, QUIET, free_ports, marked
from support.pages import PAGES as PAGES_OF_ALL
from support.played_apps import CLIENTS
from support.workplace import copied

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "projects"
PAGES = sorted(page.stem for page in FOLDER.glob("*.md") if page.stem != "index")
ROUNDS = 3
INSTALL = r"pip install \.(?= |`|$)|pip install \"\.\[\w+\]\""


def blocks(page: str, kind: str) -> list[str]:
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def changed(app: str, diff: str) -> str:
    """Apply a page's diff, whose parts (between lines `@@`) each fit at one place of the app."""
    for part in re.split(r"^@@\n", diff, flags=re.MULTILINE):
        lines = part.splitlines(keepends=True)
        before, after = (
            "".join(line[1:] or line for line in lines if not line.startswith(sign))
            for sign in "+-"
        )
        assert app.count(before) == 1, f"not at one place of the app:\n{before}"
        app = app.replace(before, after)
    return app


def apps_of(page: str) -> dict[str, str]:
    """Return the app as it was, with the page's change, and with each further one on top of it."""
    (before,) = blocks(page, "python")
    first, *further = blocks(page, "diff")
    after = changed(before, first)
    variants = {f"further_{number}": changed(after, diff) for number, diff in enumerate(further)}
    return {"fedavg": before, "fedpw": after, **variants}


def test_the_overview_links_to_every_page() -> None:
    text = (FOLDER / "index.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| \[.*?\]\((\S+)\.md\)", text, re.MULTILINE)) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_flower_finds_the_apps_of_a_page_beside_the_overviews_pyproject(
    page: str, tmp_path: Path
) -> None:
    (pyproject,) = blocks("index", "toml")
    (tmp_path / "pyproject.toml").write_text(pyproject)
    for code in apps_of(page).values():
        (tmp_path / "app.py").write_text(code)
        load_and_validate(tmp_path / "pyproject.toml")


def needed(*wanted: str) -> set[str]:
    """Name the projects that are wanted, and all that they need."""
    found: set[tuple[str, str]] = set()
    left = {(one.name, extra) for one in map(Requirement, wanted) for extra in ("", *one.extras)}
    while left:
        found.add(one := left.pop())
        for each in map(Requirement, requires(one[0]) or []):
            if each.marker is None or each.marker.evaluate({"extra": one[1]}):
                name = canonicalize_name(each.name)
                left |= {(name, extra) for extra in ("", *each.extras)} - found
    return {name for name, _ in found}


def new_environment(folder: Path, *wanted: str) -> Path:
    """Make an environment with some packages, but without this one; return its Python.

    The running one's files are linked: to download PyTorch for each page would be gigabytes.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    (packages,) = folder.glob("lib/python*/site-packages")
    running = Path(sysconfig.get_path("purelib"))
    for name in needed(*wanted) - {"fedpw-flwr"}:
        for file in distribution(name).files or []:
            if ".." not in file.parts:
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(running / file)
    return folder / "bin" / "python"


def install(python: Path, command: str, folder: Path = ROOT) -> None:
    """Run a page's `pip install`; skip without a network, or a framework for a Python so new."""
    program, *words = shlex.split(command)
    assert program == "pip"
    torch = f"torch=={version('torch')}"  # The running one: another would be gigabytes.
    pip = [sys.executable, "-m", "pip", "--python", str(python), *words, torch, "--quiet"]
    done = subprocess.run(pip, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    offline = "connection" in done.stderr.lower()
    if done.returncode and (offline or sys.version_info >= (3, 13)):
        pytest.skip(f"{command} failed: {done.stderr.strip()[-500:]}")
    assert done.returncode == 0, done.stderr


def decided(rounds: list[dict[str, Any]], key: str) -> list[list[float]]:
    """Return a list of each round; the legacy API's metrics are JSON texts."""
    values = [record[key] for record in rounds]
    return [json.loads(value) if isinstance(value, str) else value for value in values]


@pytest.mark.long
@pytest.mark.parametrize("page", PAGES)
def test_a_page_turns_fedavg_into_fedpw_with_every_client(page: str, tmp_path: Path) -> None:
    (pyproject,) = blocks("index", "toml")
    wanted = tomllib.loads(pyproject)["project"]["dependencies"]
    environment = new_environment(tmp_path / "environment", *wanted)
    for command in blocks(page, "bash"):
        install(environment, command)
    apps = apps_of(page)
    for name, code in apps.items():
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    sources = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    played = subprocess.run(
        [environment, "-m", "support.played_apps", *(f"{name}.py" for name in apps)],
        cwd=tmp_path,
        env=os.environ | QUIET | {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert played.returncode == 0, (played.stdout + played.stderr)[-6000:]
    fedavg, *with_fedpw = json.loads(played.stdout.splitlines()[-1])

    assert [record["trained"] for record in fedavg] == [CLIENTS] * ROUNDS
    assert not any("fedpw-weight" in record for record in fedavg)
    for code, rounds in zip(list(apps.values())[1:], with_fedpw, strict=True):
        assert len(rounds) == ROUNDS
        for record in rounds:
            assert record["trained"] == CLIENTS
            lost = [record[f"fedpw-{fate}"] for fate in ("quarantined", "failed", "empty")]
            assert lost == [0, 0, 0]
        # Clients are evaluated after they have trained, so the first round knows no such losses.
        begin = 1 if 'FedPW(loss_source="evaluate")' in code else 0
        for losses in decided(rounds[begin:], "fedpw-loss"):
            assert len(losses) == CLIENTS
            assert min(losses) > 0
        for weights in decided(rounds, "fedpw-weight"):
            assert len(weights) == CLIENTS
            assert sum(weights) == pytest.approx(1)


@pytest.mark.long
def test_the_overviews_command_runs_a_page_in_flowers_simulation(tmp_path: Path) -> None:
    (pyproject,) = blocks("index", "toml")
    (tmp_path / "pyproject.toml").write_text(pyproject)
    (tmp_path / "app.py").write_text(apps_of("pytorch")["fedpw"])
    (command,) = blocks("index", "bash")
    with marked() as mark:
        environment = mark | {
            "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(tmp_path / "home"),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_ports(1)),
            "RAY_ADDRESS": "local",
        }
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=tmp_path,
            env=os.environ | QUIET | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    log = done.stdout + done.stderr
    usable = "'fedpw-quarantined': 0, 'fedpw-failed': 0, 'fedpw-empty': 0"
    assert log.count(usable) == ROUNDS, log[-6000:]


@pytest.mark.long
def test_the_package_is_installed_by_the_words_of_the_pages(tmp_path: Path) -> None:
    shown = {words for text in PAGES_OF_ALL.values() for words in re.findall(INSTALL, text)}
    extras = {word for words in shown for word in re.findall(r"\[(.*?)\]", words)}
    assert extras == {"fast", "app", "report", "tensorboard", "mlflow", "wandb"}
    python = new_environment(tmp_path, f"fedpw-flwr[{','.join(extras)}]")
    for words in sorted(shown):
        install(python, words)
    importing = "import numba, mlflow, wandb, hydra; from fedpw_flwr import FedPW"
    subprocess.run([python, "-c", importing], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.long
def test_contributors_set_up_a_checkout(tmp_path: Path) -> None:
    with copied(tmp_path) as workplace:
        workplace.run("git init --quiet")
        python = new_environment(tmp_path / "environment")
        install(python, "pip install pre-commit")
        path = f"{python.parent}{os.pathsep}{workplace.environment['PATH']}"
        changed = {**workplace.environment, "PATH": path}
        replace(workplace, environment=changed).follow("CONTRIBUTING.md")
        assert (workplace.folder / ".git" / "hooks" / "pre-commit").is_file()
