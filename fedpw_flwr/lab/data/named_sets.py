"""The data sets of fair federated learning's experiments, by the names of their domains.

Digits (MNIST, USPS, SVHN, SYN) and Office-Caltech (Amazon, Caltech, DSLR, Webcam) are federations
of domains; Fashion-MNIST, CIFAR-10 and CIFAR-100 are one domain each, divided by class. A domain is
read from torchvision's files, from folders of images, or from archives, once a machine: see
:mod:`fedpw_flwr.lab.data.cache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Unpack

from fedpw_flwr.lab.data.archives import Archive
from fedpw_flwr.lab.data.examples import DomainCollection
from fedpw_flwr.lab.data.image_folders import ImageFolderSet
from fedpw_flwr.lab.data.locations import TORCHVISION_FILES, check_named_set, image_folder
from fedpw_flwr.lab.data.rendered_digits import RenderedDigits
from fedpw_flwr.lab.data.source import ImageOptions, Source, read_collection
from fedpw_flwr.lab.data.torchvision_sets import TorchvisionSet


def named_set(
    domains: Sequence[str],
    folder: str | Path,
    *,
    archives_folder: str | Path | None = None,
    download: bool = False,
    test_share: float = 0.2,
    syn: Literal["rendered", "folder"] = "rendered",
    syn_train: int = 10_000,
    syn_test: int = 2_000,
    **images: Unpack[ImageOptions],
) -> DomainCollection:
    """Read domains by their names, mapped from the cache where they were read before.

    Parameters
    ----------
    domains : sequence of str
        Among :data:`~fedpw_flwr.lab.data.locations.TORCHVISION_FILES`, ``syn`` and
        :data:`~fedpw_flwr.lab.data.locations.OFFICE_CALTECH`, in client order; any names with
        `archives_folder`.
    folder : str or Path
        Where torchvision keeps its files, ``office_caltech/DOMAIN`` the image files of
        Office-Caltech, and ``syn`` those of SYN.
    archives_folder : str or Path, optional
        Read all domains from the archives in it. SYN is drawn where it has no ``syn.npz`` and
        `syn` is "rendered".
    download : bool (default: False)
        Let torchvision fetch what is missing.
    test_share : float (default: 0.2)
        Part of a folder of images that is kept for testing, if it comes undivided.
    syn : "rendered" | "folder" (default: "rendered")
        Whether SYN's digits are drawn from fonts, or read from ``folder/syn``.
    syn_train, syn_test : int (default: 10000 and 2000)
        Number of digits drawn.
    **images
        As of :func:`fedpw_flwr.lab.data.source.read_collection`.

    Raises
    ------
    FileNotFoundError
        If sets are missing; the message says for all of them what to get and where to put it.
    ValueError
        If a name is unknown, or a file is damaged or of another form; the message names it.
    """
    check_named_set(domains, folder, archives_folder=archives_folder, download=download, syn=syn)

    def source(name: str) -> Source:
        if archives_folder is not None and Path(archives_folder, f"{name}.npz").is_file():
            return Archive(Path(archives_folder), name)
        if name == "syn" and syn == "rendered":
            return RenderedDigits(syn_train, syn_test)
        if name in TORCHVISION_FILES:
            return TorchvisionSet(name, Path(folder), download)
        return ImageFolderSet(image_folder(Path(folder), name), test_share)

    sources = [(name, source(name)) for name in domains]
    _check_classes([one for _, one in sources if isinstance(one, ImageFolderSet)])
    return read_collection(sources, **images)


def _check_classes(sets: Sequence[ImageFolderSet]) -> None:
    for other in sets[1:]:
        if other.classes() != sets[0].classes():
            raise ValueError(
                "all domains need folders of the same classes, in their names, too: "
                f"{sets[0].folder} has {', '.join(sets[0].classes())}; "
                f"{other.folder} has {', '.join(other.classes())}"
            )
