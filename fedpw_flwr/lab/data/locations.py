"""Where the files of the data sets lie: enough to miss them before anything is read or imported.

Light on purpose: the command looks here first, so that a mistyped folder is told within a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = [
    "OFFICE_CALTECH",
    "ORIGINS",
    "TORCHVISION_FILES",
    "archive_file",
    "check_archives",
    "check_named_set",
    "check_names",
]

TORCHVISION_FILES = {
    "mnist": "MNIST/raw/*-ubyte",
    "usps": "usps*.bz2",
    "svhn": "*_32x32.mat",
    "fashion_mnist": "FashionMNIST/raw/*-ubyte",
    "cifar10": "cifar-10-batches-py/*",
    "cifar100": "cifar-100-python/*",
}
"""Pattern of the files that torchvision keeps in its folder, by domain."""

OFFICE_CALTECH = ("amazon", "caltech", "dslr", "webcam")
"""Domains of Office-Caltech-10."""

_OFFICE_CALTECH_ORIGIN = (
    "Office-Caltech-10 (the ten classes that Office-31 and Caltech-256 share; Gong et al., CVPR "
    "2012) belongs into dataset.folder/office_caltech/{amazon,caltech,dslr,webcam}/CLASS/*.jpg, "
    "with the same names of classes in each; or set dataset.archives_folder to a folder with one "
    ".npz archive a domain"
)
ORIGINS = {
    **dict.fromkeys(OFFICE_CALTECH, _OFFICE_CALTECH_ORIGIN),
    "syn": (
        "Synthetic Digits (SynthDigits; Ganin and Lempitsky, ICML 2015) belong into "
        "dataset.folder/syn/{train,test}/{0,...,9}/*.png; or set dataset.archives_folder to a "
        "folder with syn.npz; or let dataset.syn=rendered draw such digits from fonts"
    ),
}
"""What to get where torchvision cannot, and where to put it."""


def archive_file(folder: Path, name: str, key: str) -> Path:
    """Return the archive of a domain.

    Parameters
    ----------
    folder : Path
        Where it should lie.
    name : str
        Of the domain.
    key : str
        Which key of the configuration says `folder`, for messages.

    Raises
    ------
    FileNotFoundError
        If the folder or the archive is missing; the message lists what is there.
    """
    file = folder / f"{name}.npz"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: set dataset.{key} to the folder which holds {file.name}"
        )
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.npz")))
        raise FileNotFoundError(
            f"there is no {file.name} in {folder} (found: {there or 'no archive at all'}): "
            f"correct dataset.domains or dataset.{key}"
        )
    return file


def check_archives(domains: Sequence[str], folder: str | Path, key: str = "folder") -> None:
    """Check that every domain has its archive.

    Raises
    ------
    FileNotFoundError
        As `archive_file`.
    """
    for name in domains:
        archive_file(Path(folder), name, key)


def check_names(domains: Sequence[str]) -> None:
    """Check that domains are among those that are read without archives.

    Raises
    ------
    ValueError
        If one is not.
    """
    known = (*TORCHVISION_FILES, "syn", *OFFICE_CALTECH)
    unknown = [name for name in domains if name not in known]
    if unknown:
        raise ValueError(
            f"dataset.domains has {unknown}, allowed are {list(known)}, and any with "
            "dataset.archives_folder"
        )


def check_named_set(
    domains: Sequence[str],
    folder: str | Path,
    *,
    archives_folder: str | Path | None = None,
    download: bool = False,
    syn: str = "rendered",
) -> None:
    """Check that there is something to read of every domain, in whatever state.

    Parameters
    ----------
    domains, folder, archives_folder, download, syn
        As of `fedpw_flwr.lab.data.named_sets.named_set`.

    Raises
    ------
    FileNotFoundError
        If there is nothing of one or more domains; the message says what to get.
    ValueError
        If the name of a domain is unknown.
    """
    files = [name for name in domains if name != "syn" or syn == "folder"]
    if archives_folder is not None:
        check_archives(files, archives_folder, "archives_folder")
        return
    check_names(domains)
    place = Path(folder)
    missing: dict[str, None] = {}
    for name in files:
        if name in TORCHVISION_FILES:
            if not download and not any(place.glob(TORCHVISION_FILES[name])):
                missing[
                    f"{name} is not in {place}: fetch it once with dataset.download=true, or set "
                    "dataset.folder to the folder where torchvision put it, or "
                    f"dataset.archives_folder to a folder with {name}.npz"
                ] = None
            continue
        own = place / ("syn" if name == "syn" else f"office_caltech/{name}")
        if not own.is_dir():
            missing[f"there are no pictures in {own}"] = None
            missing[ORIGINS[name]] = None
    if missing:
        raise FileNotFoundError("\n".join(missing))
