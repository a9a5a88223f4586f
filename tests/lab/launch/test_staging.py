"""What is staged is what Flower bundles: the code, the configuration, nothing else."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate

import fedpw_flwr
from fedpw_flwr.lab.config.configuration import config_folder
from fedpw_flwr.lab.launch.staging import StagingError, stage_app

PACKAGE = Path(fedpw_flwr.__file__).parent


def _files(folder: Path, pattern: str) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob(pattern)}


def test_every_module_and_configuration_file_is_staged(tmp_path: Path) -> None:
    app = stage_app(tmp_path / "app")
    assert _files(app / "fedpw_flwr", "*.py") == _files(PACKAGE, "*.py")
    assert _files(app / "conf", "*.yaml") == _files(config_folder(), "*.yaml")
    assert {path.suffix for path in app.rglob("*") if path.is_file()} == {".py", ".yaml", ".toml"}


def test_flowers_bundle_holds_all_that_is_staged_and_a_users_own_files(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "dataset").mkdir(parents=True)
    (mine / "dataset" / "mine.yaml").write_text("mine: 1\n")
    (mine / "notes.txt").write_text("not a configuration")
    app = stage_app(tmp_path / "app", mine)
    load_and_validate(app / "pyproject.toml", check_module=False)
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app)))
    staged = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    assert staged <= set(bundle.namelist())
    assert {"conf/dataset/mine.yaml", "conf/dataset/digits.yaml"} <= staged
    assert "conf/notes.txt" not in staged


def test_the_app_is_described_as_in_the_repositorys_own_pyproject(tmp_path: Path) -> None:
    own = PACKAGE.parent / "pyproject.toml"
    staged = tomllib.loads((stage_app(tmp_path / "app") / "pyproject.toml").read_text())
    assert staged["project"]["version"] == fedpw_flwr.__version__
    staged_app = staged["tool"]["flwr"]["app"]
    own_app = tomllib.loads(own.read_text())["tool"]["flwr"]["app"]
    # The command's ClientApp is the same one, imported later.
    own_app["components"]["clientapp"] = "fedpw_flwr.lab.app.deferred_client_app:app"
    # The staged copy holds nothing that would have to be left out of the bundle.
    del own_app["fab-include"]
    assert staged_app == own_app


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model/cnn.yaml", r"model/cnn\.yaml.*names of their own"),
        ("mine.yml", r"rename in .*mine\.yml"),
        ("notes.txt", r"holds no \*\.yaml file"),
        (None, "does not exist"),
    ],
)
def test_a_users_folder_that_cannot_be_taken_along_is_refused(
    tmp_path: Path, file: str | None, message: str
) -> None:
    mine = tmp_path / "mine"
    if file is not None:
        (mine / file).parent.mkdir(parents=True)
        (mine / file).write_text("x: 1\n")
    with pytest.raises(StagingError, match=message):
        stage_app(tmp_path / "app", mine)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match="not empty"):
        stage_app(tmp_path)
