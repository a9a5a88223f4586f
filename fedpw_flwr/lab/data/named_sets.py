"""The data sets of fair federated learning's experiments, by the names of their domains.

Digits (MNIST, USPS, SVHN, SYN) and Office-Caltech (Amazon, Caltech, DSLR, Webcam) are federations
of domains; Fashion-MNIST, CIFAR-10 and CIFAR-100 are one domain each, divided by class. A domain is
read from torchvision's files, from folders of pictures, or from archives, once a machine: see
:mod:`fedpw_flwr.lab.data.cache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from fedpw_flwr.lab.data.archives import Archive
from fedpw_flwr.lab.data.image_folders import ImageFolderSet
from fedpw_flwr.lab.data.images import Domain, DomainCollection, imagenet_normalisation
from fedpw_flwr.lab.data.locations import OFFICE_CALTECH, ORIGINS, check_names
from fedpw_flwr.lab.data.rendered_digits import RenderedDigits
from fedpw_flwr.lab.data.source import Source, read_domain
from fedpw_flwr.lab.data.subset import at_most
from fedpw_flwr.lab.data.torchvision_sets import TORCHVISION_SETS, TorchvisionSet

__all__ = ["named_set"]


def named_set(
    domains: Sequence[str],
    folder: str | Path,
    *,
    archives_folder: str | Path | None = None,
    download: bool = False,
    image_size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    max_test_per_domain: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    test_share: float = 0.2,
    syn: Literal["rendered", "folder"] = "rendered",
    syn_train: int = 10_000,
    syn_test: int = 2_000,
) -> DomainCollection:
    """Read domains by their names.

    Parameters
    ----------
    domains : sequence of str
        Among :data:`~fedpw_flwr.lab.data.torchvision_sets.TORCHVISION_SETS`, ``syn`` and
        :data:`OFFICE_CALTECH`, in client order; any names with `archives_folder`.
    folder : str or Path
        Where torchvision keeps its files, ``office_caltech/DOMAIN`` the picture files of Office-
        Caltech, and ``syn`` those of SYN.
    archives_folder : str or Path, optional
        Read all domains from the archives in it, see `archives`. SYN is drawn
        where it has no ``syn.npz`` and `syn` is "rendered".
    download : bool, default False
        Let torchvision fetch what is missing.
    image_size : int, default 32
        Height and width every picture is brought to, in pixels.
    channels : int, default 3
        1 or 3; grey pictures become RGB by repetition.
    num_classes : int, default 10
        Labels must lie in ``range(num_classes)``.
    max_test_per_domain : int or None, default None
        Keep at most so many test pictures of a domain: the same random ones in every run.
    mean, std : sequence of float, optional
        Normalisation, one number a channel in the 0-1 scale. Default: ImageNet's, as in the paper.
    test_share : float, default 0.2
        Part of a folder of pictures that is kept for testing, if it comes undivided.
    syn : "rendered" | "folder" (default: "rendered")
        Whether SYN's digits are drawn from fonts, or read from ``folder/syn``.
    syn_train, syn_test : int, default 10000 and 2000
        Number of digits drawn.

    Returns
    -------
    DomainCollection
        The domains in the order of `domains`, mapped from the cache.

    Raises
    ------
    FileNotFoundError
        If sets are missing; the message says for all of them what to get and where to put it.
    ValueError
        If a name or an option is unknown, or a file is damaged or of another form; the message
        names it.
    """
    if syn not in ("rendered", "folder"):
        raise ValueError(f"dataset.syn must be rendered or folder, got {syn!r}")
    rendered = RenderedDigits(syn_train, syn_test) if syn == "rendered" else None
    sources = (
        _in_folder(domains, Path(folder), download, test_share, rendered)
        if archives_folder is None
        else _in_archives(domains, Path(archives_folder), rendered)
    )
    default_mean, default_std = imagenet_normalisation(channels)
    parts = _read_all(sources, image_size, channels, num_classes)
    return DomainCollection(
        domains=tuple(
            Domain(part.name, part.train, at_most(part.test, max_test_per_domain)) for part in parts
        ),
        num_classes=num_classes,
        mean=default_mean if mean is None else tuple(mean),
        std=default_std if std is None else tuple(std),
    )


def _in_folder(
    domains: Sequence[str],
    folder: Path,
    download: bool,
    test_share: float,
    rendered: RenderedDigits | None,
) -> list[tuple[str, Source]]:
    check_names(domains)

    def source(name: str) -> Source:
        if name in TORCHVISION_SETS:
            return TorchvisionSet(name, folder, download)
        if name in OFFICE_CALTECH:
            return ImageFolderSet(folder / "office_caltech" / name, test_share)
        return rendered or ImageFolderSet(folder / "syn", test_share)

    return [(name, source(name)) for name in domains]


def _in_archives(
    domains: Sequence[str], folder: Path, rendered: RenderedDigits | None
) -> list[tuple[str, Source]]:
    def source(name: str) -> Source:
        archive = Archive(folder, name, key="archives_folder")
        is_drawn = name == "syn" and rendered is not None and not archive.file.is_file()
        return rendered if is_drawn and rendered is not None else archive

    return [(name, source(name)) for name in domains]


def _read_all(
    sources: Sequence[tuple[str, Source]], image_size: int, channels: int, num_classes: int
) -> list[Domain]:
    """Read every domain, and say of all that are missing at once what to get."""
    read: dict[str, Domain] = {}
    missing: list[str] = []
    advice: list[str] = []
    # What has to be drawn takes a minute the first time: only once nothing else is missing.
    for name, source in sorted(sources, key=lambda each: isinstance(each[1], RenderedDigits)):
        if missing and isinstance(source, RenderedDigits):
            continue
        try:
            read[name] = read_domain(
                name,
                source,
                image_size=image_size,
                channels=channels,
                num_classes=num_classes,
            )
        except FileNotFoundError as error:
            missing.append(str(error))
            if isinstance(source, ImageFolderSet):
                advice.append(ORIGINS[name])
    if missing:
        raise FileNotFoundError("\n".join((*missing, *dict.fromkeys(advice))))
    _check_classes([source for _, source in sources if isinstance(source, ImageFolderSet)])
    return [read[name] for name, _ in sources]


def _check_classes(sets: Sequence[ImageFolderSet]) -> None:
    for other in sets[1:]:
        if other.classes() != sets[0].classes():
            raise ValueError(
                "all domains need folders of the same classes, in their names, too: "
                f"{sets[0].folder} has {', '.join(sets[0].classes())}; "
                f"{other.folder} has {', '.join(other.classes())}"
            )
