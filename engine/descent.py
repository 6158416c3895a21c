"""Coordinate descent over launch shapes: which are tried, in which order, and when one is taken. Touches nothing.

Called by tune.py, which knows how to time them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from .ops.shapes import BLOCKS, DEPTHS, TILES, WARPS, DecodeShape, Key

Table = dict[Key, DecodeShape]
Axis = Callable[[Key, DecodeShape], Iterable[DecodeShape]]  # shapes that differ from the one given in one respect

GAIN = 0.003  # a shape is taken if a step is faster by more than this
OVERHEAD = 24  # registers of a thread beside fragments and sums; what spills all the same is skipped once compiled


def descend(
    start: Table,
    axes: Sequence[Axis],
    time: Callable[[Table], float],
    over: Callable[[], bool] = lambda: False,
    taken: Callable[[Key, DecodeShape, float, float], None] = lambda key, shape, new, old: None,
) -> Table:
    """The fastest table that changing one matrix along one axis at a time leads to; ends early once over().

    A change that seems faster by more than GAIN is timed again beside what it would replace, and must win again.
    taken(key, shape, ms with it, ms before) is called after each step."""
    best, ms, seen = dict(start), time(start), {tuple(start.values())}
    improved = True
    while improved and not over():
        improved = False
        for key in best:
            for axis in axes:
                for shape in axis(key, best[key]):
                    trial = {**best, key: shape}
                    if over() or tuple(trial.values()) in seen:
                        continue
                    seen.add(tuple(trial.values()))
                    if time(trial) < ms * (1 - GAIN) and (again := time(trial)) < (old := time(best)) * (1 - GAIN):
                        taken(key, shape, again, old)
                        best, ms, improved = trial, again, True
    return best


def axes(part: str) -> tuple[Axis, ...]:
    """What may change: tiles with depth, then warps (for `narrow` alone: they decide the bits) with blocks, staged."""

    def tiling(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_changed(shape, part, tiles=t, depth=d) for t in TILES for d in DEPTHS]

    def spread(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        allowed = [n for n in WARPS if n <= key[1] // 16] if part == "narrow" else []
        warps = dict.fromkeys((shape.warps, *allowed))
        return [replace(_changed(shape, part, blocks=b), warps=n) for n in warps for b in BLOCKS]

    def staging(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_changed(shape, part, staged=not getattr(shape, part).staged)]

    return tiling, spread, staging


def _changed(shape: DecodeShape, part: str, **fields: Any) -> DecodeShape:
    return replace(shape, **{part: replace(getattr(shape, part), **fields)})


def plausible(key: Key, shape: DecodeShape, part: str, shared: int) -> bool:
    """Whether a shape can be launched, and its registers may do for `part`. shared: bytes a block may have."""
    launch, cols, words = getattr(shape, part), 1 if part == "narrow" else 2, key[2] // 2
    fragments = (launch.tiles * 4 + cols * 2) * launch.depth * words
    registers = min(255, 65536 // (shape.warps * 32 * launch.blocks))
    return not shape.refusal(shared) and fragments + launch.tiles * cols * 4 + OVERHEAD <= registers
