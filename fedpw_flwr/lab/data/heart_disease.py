"""UCI Heart Disease: real hospitals, for when the clients of interest are few, small and unlike.

Patients of four hospitals with 13 attributes, and whether a coronary artery is narrowed (Janosi,
Steinbrunn, Pfisterer and Detrano, 1988; CC BY 4.0; https://doi.org/10.24432/C52P4X). It is the
cross-silo benchmark Fed-Heart-Disease of FLamby (Ogier du Terrail et al., NeurIPS 2022).

What is measured differs: Switzerland has no cholesterol, only Cleveland has `ca` and `thal` of all
patients. Nothing of a hospital leaves it to prepare the data of another.
"""

from __future__ import annotations

import hashlib
import logging
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fedpw_flwr.lab.data.examples import Domain, DomainCollection, Examples, stratified
from fedpw_flwr.lab.data.locations import HEART_DISEASE, check_heart_disease

logger = logging.getLogger("flwr")

_ORIGIN = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"
_SHA256 = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
_SECONDS = 30.0

_ATTRIBUTES = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal"),
)
_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
_NUMBERS = tuple(name for name in _ATTRIBUTES if name not in _CATEGORIES)
_NEVER_ZERO = ("cp", "trestbps", "chol", "slope", "thal")
"""Where files have 0, nothing was measured. Copies of Cleveland's file that have 0 for each ``?``
tell so of `thal`, but not of `ca`, of which 0 is the most frequent value."""


def heart_disease(
    domains: Sequence[str],
    folder: str | Path,
    *,
    download: bool = False,
    test_share: float = 1 / 3,
    seed: int = 0,
    url: str = _ORIGIN,
) -> DomainCollection:
    """Read the hospitals from UCI's own files, ``folder/processed.NAME.data``.

    Features are float32 (N, 35): nine numbers, standardised with mean and deviation of the
    hospital's own training patients; one entry a category of `cp`, `restecg`, `slope` and `thal`;
    one entry an attribute, 1 where it is missing. A missing number is 0, the mean of the hospital,
    as is one that nobody there has; a missing category is none of them. Class 1 is disease.

    Parameters
    ----------
    domains : sequence of str
        Of ``cleveland``, ``hungarian``, ``switzerland`` and ``va``, in client order.
    folder : str or Path
        Where the files lie.
    download : bool (default: False)
        Fetch files that are not there from UCI (40 kB), and check that they are the known ones.
    test_share : float (default: 1/3)
        Part of each hospital's patients that nobody trains on, drawn from each class alike.
    seed : int (default: 0)
        Decides the division into training and test.
    url : str (default: UCI's)
        From where files are fetched: a mirror that has them unchanged.

    Raises
    ------
    FileNotFoundError
        If a file is missing and cannot be fetched; the message says where to get it.
    ValueError
        If a file is of another form or has too few patients of a class.
    """
    folder = Path(folder)
    check_heart_disease(domains, folder, download=download)
    hospitals = []
    for name in domains:
        file = folder / HEART_DISEASE.format(name)
        if not file.exists():
            _fetch(f"{url}/{file.name}", file, _SHA256[name])
        table, labels = _read(file)
        train, test = stratified(labels, test_share, seed, f"the patients in {file}")
        everyone = Examples(torch.from_numpy(_features(table, train)), labels)
        hospitals.append(Domain(name, everyone.select(train), everyone.select(test)))
    return DomainCollection(tuple(hospitals), num_classes=2)


def _fetch(url: str, file: Path, digest: str) -> None:
    """Put a file in place, whole and as known, or not at all."""
    logger.info("fetching %s", url)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            content: bytes = answer.read()
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{url} cannot be fetched ({error}): check the connection, set dataset.url to a "
            f"mirror, or copy {file.name} into {file.parent}"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{url} is not UCI's file: its SHA-256 is not {digest}. Nothing was kept; get "
            f"{file.name} from another source and put it into {file.parent}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=file.parent) as unfinished:
        whole = Path(unfinished, file.name)
        whole.write_bytes(content)
        whole.replace(file)


def _read(file: Path) -> tuple[pd.DataFrame, torch.Tensor]:
    """Return a hospital's attributes, NaN where missing, and classes."""
    columns = [*_ATTRIBUTES, "num"]
    try:
        table = pd.read_csv(file, header=None, na_values="?", skipinitialspace=True)
        if table.shape[1] != len(columns):
            raise ValueError(f"lines have {table.shape[1]} values")
        table = table.set_axis(columns, axis=1).astype(np.float64)
        if not table["num"].isin(range(5)).all():
            raise ValueError("the last value of a line, the diagnosis, must be 0 to 4")
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(
            f"{file} is not of the form of UCI's processed files, {len(columns)} numbers a line "
            f"divided by commas, ? where one is missing: {error}"
        ) from error
    labels = torch.from_numpy((table.pop("num") > 0).to_numpy(np.int64))
    for name in _NEVER_ZERO:
        table[name] = table[name].where(table[name] != 0)
    return table, labels


def _features(table: pd.DataFrame, train: torch.Tensor) -> NDArray[np.float32]:
    """Return what a network takes, scaled by a hospital's own training patients."""
    numbers = table[list(_NUMBERS)]
    own = numbers.iloc[train.numpy()]
    # A number that nobody has, or all alike, says nothing: 0.
    spread = own.std(ddof=0).replace(0.0, np.nan)
    scaled = ((numbers - own.mean()) / spread).fillna(0.0)
    kinds = [
        (table[name] == kind).rename(f"{name}={kind}")
        for name, kinds in _CATEGORIES.items()
        for kind in kinds
    ]
    missing = table.isna().add_suffix(" is missing")
    features: NDArray[np.float32]
    features = pd.concat([scaled, *kinds, missing], axis=1).to_numpy(np.float32)
    return features
