"""Claims about the examples that need no run: their bundles, their diffs, what they say is refused.

Their commands are run in `end_to_end/test_examples.py`.
"""

from __future__ import annotations

import importlib
import io
import re
import shutil
import subprocess
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fedpw_flwr import FedPW
from fedpw_flwr.lab.config.configuration import config_folder

EXAMPLES = config_folder().parent / "examples"
PACKAGES = {
    "quickstart-pytorch": "quickstart",
    "legacy-numpyclient": "legacy_numpyclient",
    "compose": "compose",
    "deployment": "deployment",
    "hospitals": "hospitals",
    "lora": "lora",
}
DIFFS = {"quickstart-pytorch": [], "hospitals": [], "legacy-numpyclient": ["--reverse"]}
"""What `git apply` needs to apply an example's diff to the example as it is."""


def _readme(example: str) -> str:
    return (EXAMPLES / example / "README.md").read_text(encoding="utf-8")


def _changed_lines(diff: str) -> list[str]:
    return sorted(
        line
        for line in diff.splitlines()
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    )


def test_the_overview_links_to_every_example() -> None:
    folders = {path.parent.name for path in EXAMPLES.glob("*/README.md")}
    overview = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert folders == {*PACKAGES, "custom-model", "ray-cluster", "deployment"}
    assert set(re.findall(r"\]\((\S+?)\) \|", overview)) == folders


@pytest.mark.parametrize("example", PACKAGES)
def test_flower_bundles_the_app_with_all_its_modules(example: str) -> None:
    bundle = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(EXAMPLES / example)))
    modules = ("__init__", "client_app", "server_app", "task")
    assert {f"{PACKAGES[example]}/{module}.py" for module in modules} <= set(bundle.namelist())


@pytest.mark.parametrize("example", PACKAGES)
def test_flower_has_no_reason_to_rewrite_the_apps_pyproject(example: str) -> None:
    text = (EXAMPLES / example / "pyproject.toml").read_text(encoding="utf-8")
    assert "federations" not in tomllib.loads(text)["tool"]["flwr"]


# That of LoRA, whose libraries come with make test-long, is run there.
@pytest.mark.parametrize("example", [name for name in PACKAGES if name != "lora"])
def test_apps_have_the_names_in_pyproject(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (EXAMPLES / example / "pyproject.toml").read_text(encoding="utf-8")
    components = tomllib.loads(text)["tool"]["flwr"]["app"]["components"]
    monkeypatch.syspath_prepend(EXAMPLES / example)
    for component, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, name = components[component].split(":")
        assert isinstance(getattr(importlib.import_module(module), name), kind)


@pytest.mark.parametrize("example", DIFFS)
def test_the_diff_fits_the_example_as_it_is(example: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / example, tmp_path / "examples" / example)
    diff = tmp_path / "examples" / example / "fedpw.diff"
    subprocess.run(
        ["git", "apply", "--check", *DIFFS[example], diff], cwd=tmp_path, check=True, timeout=60
    )


@pytest.mark.parametrize("example", DIFFS)
def test_the_readme_shows_the_diff_as_it_is(example: str) -> None:
    diff = (EXAMPLES / example / "fedpw.diff").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```diff\n(.*?)```", _readme(example), re.DOTALL)
    assert _changed_lines(shown) == _changed_lines(diff)


def test_an_ordinary_app_needs_two_lines() -> None:
    diff = (EXAMPLES / "quickstart-pytorch" / "fedpw.diff").read_text(encoding="utf-8")
    signs = [line[0] for line in _changed_lines(diff)]
    assert signs == ["+", "+", "-", "-"]


PRIVACY_WRAPPERS: list[Callable[[], Strategy]] = [
    lambda: DifferentialPrivacyClientSideFixedClipping(FedPW(), 1.0, 1.0, 2),
    lambda: DifferentialPrivacyServerSideFixedClipping(FedPW(), 1.0, 1.0, 2),
    lambda: DifferentialPrivacyClientSideAdaptiveClipping(
        FedPW(), 1.0, 2, clipped_count_stddev=1.0
    ),
    lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedPW(), 1.0, 2, clipped_count_stddev=1.0
    ),
]


class NobodyIsAsked(Grid):
    """A grid that fails the test when it is used."""

    def _refuse(self, *arguments: Any, **named: Any) -> Any:
        pytest.fail("the strategy used the grid")

    set_run = create_message = get_node_ids = _refuse
    push_messages = pull_messages = send_and_receive = _refuse

    @property
    def run(self) -> Any:
        return self._refuse()


@pytest.mark.parametrize("wrapped", PRIVACY_WRAPPERS)
def test_central_privacy_is_refused_when_the_strategy_starts_as_the_readme_says(
    wrapped: Callable[[], Strategy],
) -> None:
    assert "central differential privacy" in _readme("compose")
    strategy = wrapped()
    arrays = ArrayRecord({"weight": Array(np.ones(3, np.float32))})
    with pytest.raises(ValueError, match="central differential privacy"):
        strategy.start(grid=NobodyIsAsked(), initial_arrays=arrays, num_rounds=1)
