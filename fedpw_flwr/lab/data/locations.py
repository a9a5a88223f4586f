"""Where the files of the data sets lie: enough to miss them before anything is read or imported.

Light on purpose: the command looks here first, so that a mistyped folder is told within a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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

HEART_DISEASE = "processed.{}.data"
"""Name of a hospital's file, as UCI has it."""

_OFFICE_CALTECH_ORIGIN = (
    "Office-Caltech-10 (the ten classes that Office-31 and Caltech-256 share; Gong et al., CVPR "
    "2012) belongs into dataset.folder/office_caltech/{amazon,caltech,dslr,webcam}/CLASS/*.jpg, "
    "with the same names of classes in each; or set dataset.archives_folder to a folder with one "
    ".npz archive a domain"
)
_SYN_ORIGIN = (
    "Synthetic Digits (SynthDigits; Ganin and Lempitsky, ICML 2015) belong into "
    "dataset.folder/syn/{train,test}/{0,...,9}/*.png; or set dataset.archives_folder to a "
    "folder with syn.npz; or let dataset.syn=rendered draw such digits from fonts"
)


def image_folder(folder: Path, name: str) -> Path:
    """Return where the image files of SYN, or of a domain of Office-Caltech, lie in `folder`."""
    return folder / ("syn" if name == "syn" else f"office_caltech/{name}")


def check_archives(domains: Sequence[str], folder: str | Path, key: str = "folder") -> None:
    """Raise FileNotFoundError if an archive is not in `folder`, which ``dataset.KEY`` names."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: set dataset.{key} to the folder which holds "
            f"{domains[0]}.npz"
        )
    for name in domains:
        if not (folder / f"{name}.npz").is_file():
            there = ", ".join(sorted(path.stem for path in folder.glob("*.npz")))
            raise FileNotFoundError(
                f"there is no {name}.npz in {folder} (found: {there or 'no archive at all'}): "
                f"correct dataset.domains or dataset.{key}"
            )


def check_heart_disease(
    domains: Sequence[str], folder: str | Path, *, download: bool = False
) -> None:
    """Raise FileNotFoundError if a hospital's file is not in `folder`, nor to be downloaded."""
    files = [Path(folder, HEART_DISEASE.format(name)) for name in domains]
    missing = [file.name for file in files if not file.is_file()]
    if missing and not download:
        raise FileNotFoundError(
            f"there is no {', '.join(missing)} in {folder}: fetch UCI's files once with "
            "dataset.download=true, or set dataset.folder to the folder where they lie "
            "(https://archive.ics.uci.edu/dataset/45)"
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

    The parameters are those of :func:`fedpw_flwr.lab.data.named_sets.named_set`.
    FileNotFoundError, with what to get for all domains, if there is nothing of some; ValueError if
    the name of one is unknown.
    """
    on_disk = [name for name in domains if name != "syn" or syn == "folder"]
    if archives_folder is not None:
        check_archives(on_disk, archives_folder, "archives_folder")
        return

    known = (*TORCHVISION_FILES, "syn", *OFFICE_CALTECH)
    unknown = [name for name in domains if name not in known]
    if unknown:
        raise ValueError(
            f"dataset.domains has {unknown}, allowed are {list(known)}, and any with "
            "dataset.archives_folder"
        )

    folder = Path(folder)
    missing = []
    for name in on_disk:
        own = image_folder(folder, name)
        is_torchvisions = name in TORCHVISION_FILES
        if not is_torchvisions and not any(own.glob("*/")):
            missing.append(f"there are no images in {own}")
            missing.append(_SYN_ORIGIN if name == "syn" else _OFFICE_CALTECH_ORIGIN)
        if is_torchvisions and not download and not any(folder.glob(TORCHVISION_FILES[name])):
            missing.append(
                f"{name} is not in {folder}: fetch it once with dataset.download=true, or set "
                "dataset.folder to the folder where torchvision put it, or "
                f"dataset.archives_folder to a folder with {name}.npz"
            )
    if missing:
        raise FileNotFoundError("\n".join(dict.fromkeys(missing)))
