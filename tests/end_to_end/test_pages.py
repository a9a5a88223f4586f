"""Every command that a page shows is typed as it stands there, with fewer rounds.

Those of the examples are run in `test_examples.py` and `test_deployment.py`, those that install in
`docs/test_project_pages.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.images import write_archives
from support.pages import PAGES, blocks, write_files
from support.workplace import Workplace, copied

from fedpw_flwr.lab.runs.run_folder import RunFolder

pytestmark = pytest.mark.long

ELSEWHERE = ("examples/", "docs/projects/", "docs/strategy.md", "CONTRIBUTING.md")
FOUND = [
    page
    for page, text in PAGES.items()
    if blocks("bash", [text]) and not page.startswith(ELSEWHERE)
]
SHORTER = dict.fromkeys(["docs/architecture.md", "docs/own-data.md"], "rounds=1")
"""Where models are the page's own."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """Give a checkout in which a run was made, and with the data that pages speak of."""
    folder = tmp_path_factory.mktemp("pages")
    images = {"x_train": np.zeros((800, 8, 8), np.uint8), "y_train": np.arange(800) % 10}
    write_archives(folder / "pictures, old", "mnist", "usps", "svhn", "mnistm", **images)
    with copied(folder, HOME=str(folder), SHORTER="rounds=1 client.epochs=1 model=mlp") as made:
        archives = made.folder / "path" / "to" / "the" / "archives"
        archives.parent.mkdir(parents=True)
        write_archives(archives, "hospital_a", "hospital_b")
        made.run("fedpw hydra.run.dir=outputs/RUN")
        yield made


@pytest.mark.parametrize("page", FOUND)
def test_the_commands_of_a_page_run(page: str, workplace: Workplace) -> None:
    write_files(page, workplace.folder)
    shorter = {"SHORTER": SHORTER.get(page, workplace.environment["SHORTER"])}
    replace(workplace, environment={**workplace.environment, **shorter}).follow(page)
    for run in (workplace.folder / "outputs").glob("*_seed*"):
        played = [record.round for record in RunFolder(run).read_rounds()]
        assert played == list(range(RunFolder(run).read_summary().rounds + 1))
        assert played[1:]
