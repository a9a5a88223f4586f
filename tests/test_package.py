"""Claims about the package as people install it."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import fedpw_flwr

REPOSITORY = Path(fedpw_flwr.__file__).resolve().parents[1]

APP_ONLY = {
    *(
        "datasets",
        "flwr_datasets",
        "hydra",
        "jinja2",
        "joblib",
        "matplotlib",
        "omegaconf",
        "psutil",
    ),
    *("ray", "scipy", "sklearn", "torchvision"),
}


def _imported(first: str, then: str) -> set[str]:
    """Name the packages that the second statement imports beyond the first one's."""
    names = "{name.partition('.')[0] for name in sys.modules}"
    code = f"import json, sys; {first}; there = {names}; {then}"
    code += f"; print(json.dumps(sorted({names} - there)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout))


def test_the_strategy_needs_nothing_of_the_app() -> None:
    added = _imported("import flwr.serverapp, numpy, torch", "from fedpw_flwr import FedPW")
    assert not added & APP_ONLY


def test_importing_the_package_alone_does_not_import_pytorch() -> None:
    assert "torch" not in _imported("pass", "import fedpw_flwr")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="FedPV"):
        _ = fedpw_flwr.FedPV


def test_version_is_that_of_pyproject() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert fedpw_flwr.__version__ == project["version"]


def test_the_version_is_cited_and_in_the_changelog() -> None:
    version = re.escape(fedpw_flwr.__version__)
    citation, changes = (
        (REPOSITORY / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md")
    )
    assert re.search(rf"^version: {version}$", citation, re.M)
    assert re.search(rf"^## {version} ", changes, re.M)


def test_contributors_are_shown_code_as_it_is() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"\(`(\S+\.py)`\):\n\n```python\n(.*?)```", text, re.S)
    assert len(shown) == text.count("```python")
    for file, code in shown:
        assert code in (REPOSITORY / file).read_text(encoding="utf-8")


def test_the_bundle_that_flwr_run_sends_holds_the_app_and_nothing_else(tmp_path: Path) -> None:
    # A copy, because Flower reads all of .venv before it leaves it out.
    for path in REPOSITORY.iterdir():
        if path.is_dir() and path.name not in {".venv", ".git", "outputs", "multirun"}:
            shutil.copytree(path, tmp_path / path.name)
        elif path.is_file():
            shutil.copy(path, tmp_path)
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path)))
    sent = {name for name in bundle.namelist() if not name.startswith(".info/")}
    assert sent == {
        *("pyproject.toml", "README.md", "LICENSE"),
        *(
            path.relative_to(REPOSITORY).as_posix()
            for folder, kind in (("fedpw_flwr", "*.py"), ("conf", "*.yaml"))
            for path in (REPOSITORY / folder).rglob(kind)
        ),
    }


@pytest.mark.long
def test_wheel_holds_the_code_and_the_configuration(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, REPOSITORY],
        check=True,
        timeout=300,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert "fedpw_flwr/py.typed" in packed
    for folder, kind in (("fedpw_flwr", "*.py"), ("conf", "*.yaml")):
        for path in (REPOSITORY / folder).rglob(kind):
            name = path.relative_to(REPOSITORY).as_posix()
            assert (name if folder == "fedpw_flwr" else f"fedpw_flwr/{name}") in packed
