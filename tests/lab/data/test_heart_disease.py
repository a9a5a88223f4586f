"""Files of UCI's form: divided, standardised in each hospital, fetched with a checksum."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from fedpw_flwr.lab.data import heart_disease as module
from fedpw_flwr.lab.data.examples import Domain
from fedpw_flwr.lab.data.heart_disease import heart_disease

HOSPITALS = ("cleveland", "va")
AGE, CHOLESTEROL, CATEGORIES, MISSING = 0, 3, slice(9, 22), slice(22, 35)
# Age, sex, cp, trestbps, chol, fbs, restecg, thalach, exang, oldpeak, slope, ca, thal, diagnosis
LINES = """63.0,1.0,1.0,145.0,233.0,1.0,2.0,150.0,0.0,2.3,3.0,0.0,6.0,0
67.0,1.0,4.0,160.0,286.0,0.0,2.0,108.0,1.0,1.5,2.0,3.0,3.0,2
37,1,3,130,250,0,0,187,0,3.5,3,0,3,0
41,0,2,130,204,0,2,172,0,1.4,1,?,?,0
56,1,2,120,0,0,0,178,0,.8,1,0,0,1
62,0,4,140,?,0,2,160,0,3.6,3,2,3,3
57,0,4,?,354,0,0,163,1,.6,1,0,3,0
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in HOSPITALS:
        (tmp_path / f"processed.{name}.data").write_text(LINES)
    return tmp_path


def _all(domain: Domain) -> torch.Tensor:
    return torch.cat([domain.train.features, domain.test.features])


def test_each_class_is_divided_and_everyone_is_there_once(folder: Path) -> None:
    hospital, _ = heart_disease(HOSPITALS, folder).domains
    assert hospital.test.labels.sort().values.tolist() == [0, 0, 1]
    assert hospital.train.labels.sort().values.tolist() == [0, 0, 1, 1]
    assert _all(hospital).shape == (7, 35)


def test_the_division_is_the_seeds(folder: Path) -> None:
    drawn = [heart_disease(["va"], folder, seed=seed).domains[0] for seed in (1, 1, *range(2, 12))]
    assert torch.equal(drawn[0].test.features, drawn[1].test.features)
    assert len({tuple(one.test.features.flatten().tolist()) for one in drawn}) > 2


def test_numbers_are_standardised_by_the_hospitals_own_training_patients(folder: Path) -> None:
    (hospital,) = heart_disease(["va"], folder).domains
    ages = hospital.train.features[:, AGE]
    assert float(ages.mean()) == pytest.approx(0, abs=1e-6)
    assert float(ages.std(correction=0)) == pytest.approx(1, abs=1e-6)


def test_what_is_missing_is_the_hospitals_mean_and_marked(folder: Path) -> None:
    # Cholesterol: one "?", and one 0, which no patient has.
    everyone = _all(heart_disease(["va"], folder).domains[0])
    marked = everyone[:, MISSING]
    chol, slope, ca, thal = (marked[:, column].bool() for column in (4, 10, 11, 12))
    assert [int(one.sum()) for one in (chol, slope, ca, thal)] == [2, 0, 1, 2]
    assert torch.equal(everyone[chol, CHOLESTEROL], torch.zeros(2))
    assert torch.equal(everyone[thal, CATEGORIES][:, -3:], torch.zeros(2, 3))
    assert torch.equal(everyone[:, CATEGORIES].sum(dim=1), 4.0 - thal.float())


def test_an_attribute_that_nobody_has_is_zero(folder: Path) -> None:
    file = folder / "processed.va.data"
    rows = [line.split(",") for line in LINES.splitlines()]
    file.write_text("\n".join(",".join([*row[:4], "0", *row[5:]]) for row in rows))
    everyone = _all(heart_disease(["va"], folder).domains[0])
    assert torch.equal(everyone[:, CHOLESTEROL], torch.zeros(7))
    assert everyone.isfinite().all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LINES.replace(",0\n", "\n"), r"14 numbers a line divided by commas"),
        (LINES.replace("63.0", "old"), r"of the form of UCI's processed files.*'old'"),
        (LINES.replace(",3\n", ",5\n"), r"the diagnosis, must be 0 to 4"),
        ("\n".join(LINES.splitlines()[:3]), r"cannot be divided.*only 1 member"),
        ("", r"of the form of UCI's processed files"),
    ],
)
def test_a_file_of_another_form_is_refused_by_name(folder: Path, text: str, said: str) -> None:
    (folder / "processed.va.data").write_text(text)
    with pytest.raises(ValueError, match=rf"processed\.va\.data.*{said}"):
        heart_disease(["va"], folder)


def test_missing_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no processed\.va\.data.*dataset\.download=true"):
        heart_disease(["va"], tmp_path)


@pytest.fixture
def url(folder: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_files_are_fetched_once_and_checked(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(ValueError, match=r"not UCI's file: its SHA-256 is not e7c93d8d"):
        heart_disease(["va"], kept, download=True, url=url)
    assert not kept.exists()

    known = {"va": hashlib.sha256(LINES.encode()).hexdigest()}
    monkeypatch.setattr(module, "_SHA256", module._SHA256 | known)
    fetched = heart_disease(["va"], kept, download=True, url=url)
    assert [file.name for file in kept.iterdir()] == ["processed.va.data"]
    # What is there is not fetched again.
    again = heart_disease(["va"], kept, download=True, url="http://127.0.0.1:9")
    assert torch.equal(fetched.domains[0].test.features, again.domains[0].test.features)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched.*copy processed\.cleveland"):
        heart_disease(["cleveland"], kept, download=True, url="http://127.0.0.1:9")


def test_features_are_float32_and_classes_two(folder: Path) -> None:
    collection = heart_disease(HOSPITALS, folder)
    assert (collection.num_classes, collection.in_channels) == (2, 35)
    assert collection.domains[0].train.features.numpy().dtype == np.float32
