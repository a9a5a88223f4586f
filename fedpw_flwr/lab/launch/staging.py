"""Put the app in a folder of its own before Flower sees it.

Flower bundles the folder it is pointed at for the server, but lets Ray's clients import from the
folder in which the SuperLink was started. Run from a checkout, the two can differ, and a file
edited during a run changes half of it. A private copy makes both sides read the same code, works
the same for a wheel, and is where a user's own configuration files are laid over the package's.
"""

import shutil
from pathlib import Path

import tomli_w

from fedpw_flwr import __version__
from fedpw_flwr.lab.config.configuration import config_folder

_PACKAGE = Path(__file__).resolve().parents[2]


class StagingError(RuntimeError):
    """The app cannot be copied; the message says what is missing and what to do."""


def stage_app(destination: Path, extra_config_folder: Path | None = None) -> Path:
    """Copy the package and its configuration into a new Flower app folder, and return that.

    `extra_config_folder` holds a user's hydra files, laid out as `conf/` (say
    `dataset/mine.yaml`), which are added to the package's.

    Raises
    ------
    StagingError
        If the destination is in use, the package's configuration is missing, or
        `extra_config_folder` holds nothing that hydra would read.
    """
    if destination.exists() and any(destination.iterdir()):
        raise StagingError(
            f"Cannot stage the app in {destination}: the folder is not empty. "
            "Give a folder that does not exist yet."
        )
    shutil.copytree(_PACKAGE, destination / _PACKAGE.name, ignore=_only_python, dirs_exist_ok=True)
    shutil.copytree(config_folder(), destination / "conf", ignore=_only_yaml)
    if extra_config_folder is not None:
        _overlay(extra_config_folder, destination / "conf")
    (destination / "pyproject.toml").write_text(_pyproject(), encoding="utf-8")
    return destination


def _overlay(source: Path, destination: Path) -> None:
    if not source.is_dir():
        raise StagingError(f"The configuration folder {source} does not exist or is no folder.")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    misnamed = [str(path.relative_to(source)) for path in files if path.suffix == ".yml"]
    if misnamed:
        raise StagingError(
            f"Hydra reads *.yaml files only; rename in {source}: {', '.join(misnamed)}"
        )
    readable = [path for path in files if path.suffix == ".yaml"]
    if not readable:
        raise StagingError(
            f"The configuration folder {source} holds no *.yaml file. Lay it out like the "
            "package's own conf/, for example dataset/mine.yaml."
        )
    taken = [path for path in readable if (destination / path.relative_to(source)).exists()]
    if taken:
        names = ", ".join(str(path.relative_to(source)) for path in taken)
        raise StagingError(
            f"{source} holds files with names of the package's own: {names}. Give them names of "
            "their own (dataset/mine.yaml is chosen by dataset=mine)."
        )
    for path in readable:
        target = destination / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _only_python(folder: str, names: list[str]) -> list[str]:
    # A wheel keeps conf/ inside the package; the staged copy has it at the top, like a checkout.
    return [
        name
        for name in names
        if name == "__pycache__"
        or (name == "conf" and Path(folder) == _PACKAGE)
        or (Path(folder, name).is_file() and not name.endswith(".py"))
    ]


def _only_yaml(folder: str, names: list[str]) -> list[str]:
    return [
        name
        for name in names
        if name == "__pycache__" or (Path(folder, name).is_file() and not name.endswith(".yaml"))
    ]


def _pyproject() -> str:
    return tomli_w.dumps(
        {
            "project": {
                "name": "fedpw-flwr",
                "version": __version__,
                "description": "Fair federated learning with FedPW",
                "license": "Apache-2.0",
            },
            "tool": {
                "flwr": {
                    "app": {
                        "publisher": "fedpw",
                        "components": {
                            "serverapp": "fedpw_flwr.lab.app.server_app:app",
                            "clientapp": "fedpw_flwr.lab.app.deferred_client_app:app",
                        },
                        "config": {
                            "config-name": "config",
                            "overrides": "",
                            "output-folder": "",
                            "resume": False,
                        },
                    }
                }
            },
        }
    )
