"""A setting with all that was decided about it before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedpw_flwr.lab.compare.settings import Method, Setting
from fedpw_flwr.lab.compare.statistics import Window

__all__ = ["ComparedSetting"]


@dataclass(frozen=True, eq=False)
class ComparedSetting:
    """A setting, and what tables and the page say about it.

    Attributes
    ----------
    setting : Setting
        Its runs.
    windows : tuple[Window, ...]
        Which rounds the tables are about.
    reference : Method | None
        The method that the others are compared with; None if it was not run here.
    target : float
        Mean accuracy in percent that methods race to; NaN where there is none.
    target_note : str
        Where the target comes from.
    plots : Mapping[Path, str]
        Captions by the plots' files.
    """

    setting: Setting
    windows: tuple[Window, ...]
    reference: Method | None
    target: float
    target_note: str
    plots: Mapping[Path, str]
