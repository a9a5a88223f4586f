"""The inner loops of the server step on a CPU: what entries go through in one reading.

Compiled by Numba where it is installed and the models are large. Each loop then reads its arrays
once, with an entry in a register through all that is computed of it. NumPy and PyTorch, which read
and write memory once for every operation, do the same otherwise.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Bools", "Bytes", "Float32s", "Kernels", "kernels", "why_not_compiled"]

Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]


_WORTH_COMPILING = 1 << 24
"""Numbers that NumPy takes a quarter of a second for."""


class Kernels(Protocol):
    """What both kinds of loops do.

    Arrays have shape (n,) and are contiguous; sums are taken in float32 over some thousand entries,
    up to 32,768, and in float64 over these. Entries are finite.
    """

    def add_update(self, start: Float32s, trained: Float32s, total: Float32s) -> None:
        """Add Δ_k = w − w_k to `total`."""
        ...

    def products(self, start: Float32s, trained: Float32s, total: Float32s) -> tuple[float, float]:
        """Return ⟨Δ_k, Σ_j Δ_j⟩ and ‖Δ_k‖², `total` being Σ_j Δ_j."""
        ...

    def collect_update(
        self,
        start: Float32s,
        trained: Float32s,
        low: np.float32,
        high: np.float32,
        between: Float32s,
    ) -> tuple[int, float, float, int]:
        """Sum up the magnitudes of Δ_k below a bracket, and collect those inside.

        Parameters
        ----------
        start, trained : NDArray[float32]
            w and w_k.
        low, high : float32
            The bracket, both ends included, 0 ≤ low ≤ high.
        between : NDArray[float32]
            Where magnitudes are collected, in their order; shape (n + 8,), the 8 being room to
            write to.

        Returns
        -------
        tuple[int, float, float, int]
            Number, sum and sum of squares of those below `low`; how many were collected.
        """
        ...

    def collect_values(
        self, magnitudes: Float32s, low: np.float32, high: np.float32, between: Float32s
    ) -> tuple[int, float, float, int]:
        """Do with numbers that are not negative what `collect_update` does with magnitudes."""
        ...

    def sum_of_smallest(self, parted: Float32s, taken: int) -> tuple[float, float, int, int]:
        """Sum up the first `taken` ≥ 1 of partitioned magnitudes, the last being their largest.

        Returns
        -------
        tuple[float, float, int, int]
            Sum, sum of squares, how many equal the largest of them, and how many of the others do.
        """
        ...

    def average(
        self,
        start: Float32s,
        trained: Float32s,
        weight: np.float32,
        threshold: np.float32,
        inverse_norm: np.float32,
        change: Float32s,
        total: Float32s,
        squares: Float32s,
    ) -> None:
        """Add λ_k Δ̃_k to `change`, x_k = Δ̃_k / ‖Δ̃_k‖ to `total`, x_k² to `squares`.

        Entries of no larger magnitude than `threshold` are masked; none is where it is negative.
        """
        ...

    def choose_above(
        self, values: Float32s, threshold: np.float32, room: int, members: Bools
    ) -> None:
        """Choose what is above the threshold, and the first `room` entries that equal it."""
        ...

    def magnitude_on(
        self, change: Float32s, members: Bools, sent: Bools, factor: np.float32
    ) -> float:
        """Return Σ_{j∈C} |g_j|, divided by `factor` where the clients multiplied by it."""
        ...

    def move(self, start: Float32s, change: Float32s, members: Bools, factor: np.float32) -> None:
        """Write w − g over g, amplified by `factor` on C."""
        ...

    def unpack(
        self, bits: Bytes, values: Float32s, scale: np.float32, start: Float32s, out: Float32s
    ) -> None:
        """Write w − Δ̃_k over `out`: a bit an entry says whether its value comes next or is 0.

        Parameters
        ----------
        bits : NDArray[uint8]
            The mask, shape (⌈n / 8⌉,).
        values : NDArray[float32]
            The kept values, and 8 more that are finite and not used.
        scale : float32
            By which values are multiplied, a power of two.
        start, out : NDArray[float32]
            w and w_k.
        """
        ...


def kernels(numbers: int) -> Kernels:
    """Return the loops for so many numbers, which are the entries of all updates of a round.

    Those in NumPy where Numba is missing or where loading compiled code, a second, and compiling it
    when that has not been kept, four seconds, takes longer than a few rounds.
    """
    from fedpw_flwr.engines.kernels import uncompiled

    if numbers < _WORTH_COMPILING:
        return uncompiled
    return _compiled()[0] or uncompiled


def why_not_compiled() -> str:
    """Return why no loop is compiled; empty where those of large models are."""
    return _compiled()[1]


@cache
def _compiled() -> tuple[Kernels | None, str]:
    try:
        from fedpw_flwr.engines.kernels import compiled
    except ModuleNotFoundError:
        return None, "numba is not installed"
    except (ImportError, OSError) as error:
        return None, f"numba cannot be used ({error})"
    return compiled, ""
