"""All updates of one tensor, a block of entries at a time, shared among threads.

Arithmetic on a few numbers a byte waits for memory, so what is read once should go through
everything while it is in the cache: a block holds the same entries of every client's update. Blocks
do not depend on the number of threads, and what they give is taken in their order: the result has
the same bits on any machine with the same instructions.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fedpw_flwr.algorithm.selection import BLOCK, SAMPLED, Float32s, smallest

__all__ = [
    "TASK",
    "BlockedTensor",
    "DenseUpdate",
    "Mask",
    "MaskedUpdate",
    "UpdateSource",
    "UpdateWriter",
    "in_threads",
    "is_plain",
    "round_as_sent_",
    "threads_for",
    "update_writer",
]

_TOGETHER = 1 << 20
"""Entries of all clients in one block: 4 MiB."""

TASK = 1 << 18
"""Entries of a tensor that a thread takes at a time."""

_MOST_THREADS = 1
"""Two take turns at Python's lock between operations this short, and were measured to be slower."""

UpdateWriter = Callable[[int, int, Float32s], None]
"""Writes Δ_k[begin:end] of one tensor into the last argument."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class UpdateSource(Protocol):
    """A client's tensors of which a block can be read without making the whole."""

    def update_writer(self, name: str, start: Float32s) -> UpdateWriter | None:
        """Return what writes Δ_k = w − w_k of the tensor `name`, w being `start`, flat.

        None where only the whole tensor can be had.
        """
        ...


class DenseUpdate:
    """Δ_k of a tensor that lies in memory.

    Parameters
    ----------
    start : NDArray[float32]
        w, flat.
    trained : Tensor
        w_k, float32, on the CPU; kept, not copied.
    """

    def __init__(self, start: Float32s, trained: Tensor) -> None:
        self._start = start
        # In the order of the index; slow to read where that is not the order in memory.
        array = trained.numpy()
        self._trained = array.reshape(-1) if trained.is_contiguous() else array.flat

    def __call__(self, begin: int, end: int, out: Float32s) -> None:
        """Write Δ_k[begin:end]."""
        np.subtract(self._start[begin:end], self._trained[begin:end], out=out)

    def sample(self) -> Float32s:
        """Return the magnitudes of one entry in `SAMPLED`."""
        sample: Float32s = np.abs(self._start[::SAMPLED] - self._trained[::SAMPLED])
        return sample


@dataclass(frozen=True)
class Mask:
    """Which entries of an update are masked.

    Attributes
    ----------
    threshold : float
        Entries of no larger magnitude are; negative where none is.
    first_kept_tie : int
        From this entry on, those of just this magnitude are kept.
    """

    threshold: float
    first_kept_tie: int

    def apply_(self, updates: Tensor, begin: int) -> None:
        """Write 0 to what is masked of the entries that begin with `begin`, shape (n,)."""
        if self.threshold < 0:
            return
        split = min(max(self.first_kept_tie - begin, 0), len(updates))
        below = float(np.nextafter(np.float32(self.threshold), np.float32(0)))
        for part, largest in ((updates[:split], self.threshold), (updates[split:], below)):
            if len(part):
                torch.hardshrink(part, largest, out=part)


class MaskedUpdate:
    """Δ̃_k: an update of which the entries of smallest magnitude are written as 0.

    Parameters
    ----------
    update : UpdateWriter
        Writes Δ_k.
    entries, count : int
        Size of the tensor, and how many entries are masked, those of lower index first where
        magnitudes are equal.
    """

    def __init__(self, update: UpdateWriter, entries: int, count: int) -> None:
        self._update = update
        self._mask = Mask(-1.0, entries)
        self.discarded = 0.0
        if count:
            magnitudes = np.empty(entries, dtype=np.float32)
            update(0, entries, magnitudes)
            np.abs(magnitudes, out=magnitudes)
            found = smallest(magnitudes, count)
            # In the precision in which clients report it.
            self.discarded = float(np.float32(found.total / count))
            self._mask = Mask(found.threshold, entries)
            if found.further_ties:
                ties = np.flatnonzero(magnitudes == found.threshold)
                self._mask = Mask(found.threshold, int(ties[found.ties]))

    def __call__(self, begin: int, end: int, out: Float32s) -> None:
        """Write Δ̃_k[begin:end]."""
        self._update(begin, end, out)
        self._mask.apply_(torch.from_numpy(out), begin)


def update_writer(tensors: Mapping[str, Tensor], name: str, start: Float32s) -> UpdateWriter | None:
    """Return what writes Δ_k = w − w_k of one tensor; None where only the whole can be had.

    Parameters
    ----------
    tensors : Mapping[str, Tensor]
        w_k by name: an `UpdateSource`, or a dict. Of another mapping nothing is known about what
        making its tensors costs, so none of them is held.
    name : str
        Which tensor.
    start : NDArray[float32]
        w, flat.
    """
    source = getattr(tensors, "update_writer", None)
    if source is not None:
        writer: UpdateWriter | None = source(name, start)
        return writer
    if isinstance(tensors, dict) and is_plain(tensors[name]):
        return DenseUpdate(start, tensors[name])
    return None


def round_as_sent_(update: Float32s, start: Float32s) -> None:
    """Round Δ̃_k in place as if w − Δ̃_k had travelled and had been subtracted from w again."""
    np.subtract(start, update, out=update)
    np.subtract(start, update, out=update)


def is_plain(tensor: Tensor) -> bool:
    """Say whether a tensor can be read in blocks: float32 on the CPU."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


@dataclass(frozen=True, eq=False)
class BlockedTensor:
    """One tensor of a round.

    Attributes
    ----------
    name : str
        Its name.
    start : NDArray[float32]
        w, flat.
    writers : Sequence[UpdateWriter]
        How to read each Δ_k.
    """

    name: str
    start: Float32s
    writers: Sequence[UpdateWriter]

    @property
    def size(self) -> int:
        """Entries of all clients together."""
        return len(self.start) * len(self.writers)

    @property
    def block(self) -> int:
        """Entries a block: a multiple of 1024."""
        return max(1 << 10, min(BLOCK, _TOGETHER // len(self.writers) // 1024 * 1024))

    @property
    def tasks(self) -> list[tuple[int, int]]:
        """Entries of each task, from and to, at borders of blocks."""
        step = -(-TASK // self.block) * self.block
        entries = len(self.start)
        return [(begin, min(begin + step, entries)) for begin in range(0, entries, step)]

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, int, Float32s]]:
        """Form one block after the other: from, to, and the updates, shape (N, entries)."""
        rows = np.empty((len(self.writers), min(self.block, end - begin)), dtype=np.float32)
        for first in range(begin, end, self.block):
            last = min(first + self.block, end)
            updates = rows[:, : last - first]
            for writer, row in zip(self.writers, updates, strict=True):
                writer(first, last, row)
            yield first, last, updates


def threads_for(entries: int) -> int:
    """Return how many threads the arithmetic on so many numbers is worth.

    No more than torch is set to use.
    """
    return max(1, min(torch.get_num_threads(), _MOST_THREADS, entries // _TOGETHER))


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Do `work` on each item in so many threads, results in the order of the items.

    Torch's own threads rest meanwhile: its operations on blocks are too short to share. Few items
    are taken ahead, so that their results do not pile up.
    """
    with _torch_on_one_thread():
        if threads == 1:
            yield from map(work, items)
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead: deque[Future[Result]] = deque()
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()


_steps = threading.Lock()
_steps_at_work: list[int] = []
"""Torch's usual number of threads, once for each step that is at work."""


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    """Set torch's number of threads, which is the process's, to 1 until the last step is done.

    A thread that uses torch for the first time meanwhile keeps to one thread.
    """
    with _steps:
        _steps_at_work.append(_steps_at_work[0] if _steps_at_work else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _steps:
            usual = _steps_at_work.pop()
            if not _steps_at_work:
                torch.set_num_threads(usual)
