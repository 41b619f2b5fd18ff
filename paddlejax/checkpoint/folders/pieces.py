"""An array that lies in pieces: rectangles, or stretches of a rectangle's elements in a row."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...array_types import Stored
from ..errors import Refused, shown
from .shards import Mapped, whole

COMPARED = 2 * 10**7  # pairs of pieces of one array


class Rectangle(NamedTuple):
    """A part of an array, and where its elements are."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    source: Any  # of this shape


class Joined(Stored):
    """An array put together from rectangles, as far as it is asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, rectangles: list[Rectangle]):
        self.shape, self.dtype, self.rectangles = shape, np.dtype(dtype), rectangles

    def __getitem__(self, index: Any) -> np.ndarray:
        wanted = [s.indices(n)[:2] for s, n in zip(whole(index, self.shape), self.shape, strict=True)]
        out = np.empty([max(0, b - a) for a, b in wanted], self.dtype)
        for offset, shape, source in self.rectangles:
            to, of = [], []
            for (a, b), o, n in zip(wanted, offset, shape, strict=True):
                low, high = max(a, o), min(b, o + n)
                to.append(slice(low - a, high - a))
                of.append(slice(low - o, high - o))
                if low >= high:
                    break
            else:
                out[tuple(to)] = source[tuple(of)]
        return out


def rectangles(
    offset: tuple[int, ...], shape: tuple[int, ...], stretch: tuple[int, int] | None, source: Any
) -> Iterator[Rectangle]:
    """The rectangles of a piece; a stretch is at most two for each axis, for rows follow one another."""
    if stretch is None:
        yield Rectangle(offset, shape, source)
        return
    for at, extent, start in _cut(*stretch, shape) if stretch[0] < stretch[1] else ():
        n, begin = math.prod(extent), start - stretch[0]
        part = source.stretch(begin, extent) if isinstance(source, Mapped) else source[begin : begin + n]
        there = tuple(a + o for a, o in zip(at, offset, strict=True))
        yield Rectangle(there, extent, part if isinstance(part, Mapped) else part.reshape(extent))


def _cut(start: int, stop: int, shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """The elements start..stop of an array in row-major order, as (offset, shape, first element)."""
    if not shape:
        return [((), (), start)]
    if len(shape) == 1:
        return [((start,), (stop - start,), start)]
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the full rows
    if first > last:  # inside of one row
        first = last = start // row
        parts = [(first, start, stop)]
    else:
        parts = [(first - 1, start, first * row), (last, last * row, stop)]
    found = [
        ((r, *at), (1, *extent), r * row + begin)
        for r, a, b in parts
        if a < b
        for at, extent, begin in _cut(a - r * row, b - r * row, shape[1:])
    ]
    if first < last:
        found.append(((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:]), first * row))
    return found


def check_tiling(key: str, shape: tuple[int, ...], parts: Sequence[Rectangle]) -> None:
    """Refuse rectangles that do not cover an array, each element once."""
    parts = [p for p in parts if math.prod(p.shape)]
    total = math.prod(shape)
    if any(o + n > w for p in parts for o, n, w in zip(p.offset, p.shape, shape, strict=True)):
        raise Refused(f"a piece of {shown(key)} is outside of its shape {shape}")
    _check_apart(key, parts)
    if (covered := sum(math.prod(p.shape) for p in parts)) != total:
        raise Refused(f"the pieces of {shown(key)} have {covered} elements, its shape {shape} has {total}")


def _check_apart(key: str, parts: Sequence[Rectangle]) -> None:
    """Refuse two rectangles that overlap; only those are compared that do so along one axis."""
    if len(parts) < 2 or not parts[0].shape:
        if len(parts) > 1:
            raise Refused(f"{shown(key)} is there {len(parts)} times, expected once")
        return
    low = np.array([p.offset for p in parts])
    high = low + np.array([p.shape for p in parts])
    axis = int(np.argmax([len(np.unique(column)) for column in low.T]))
    order = np.argsort(low[:, axis], kind="stable")
    low, high = low[order], high[order]
    ends = np.searchsorted(low[:, axis], high[:, axis], side="left")
    if int((ends - np.arange(len(parts))).sum()) > COMPARED:
        raise Refused(f"{shown(key)} is in too many pieces that lie one over the other")
    for i, end in enumerate(ends):
        meets = ((low[i] < high[i + 1 : end]) & (low[i + 1 : end] < high[i])).all(axis=1)
        if meets.any():
            other = low[i + 1 + int(np.argmax(meets))]
            places = f"at {tuple(low[i].tolist())} and at {tuple(other.tolist())}"
            raise Refused(f"two pieces of {shown(key)} overlap: those {places}")
