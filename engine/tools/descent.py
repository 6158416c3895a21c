"""Coordinate descent over launch shapes: which are tried, in which order, and when one is taken. Touches nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..ops.shapes import BLOCKS, DEPTHS, SPLITS, TILES, WARPS, DecodeShape, Key, Launch

Table = dict[Key, DecodeShape]
Axis = Callable[[Key, DecodeShape], Iterable[DecodeShape]]  # shapes that differ from the one given in one respect

GAIN = 0.003  # a shape is taken if a step is faster by more than this
REGISTERS, RING = (4,), (4, 8)  # depths to begin with when weights come the other way
NEAR = 5  # depths tried at a time


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


def axes(part: str, clusters: bool, warps: bool) -> tuple[Axis, ...]:
    """What may change of the launch `part` ("single", "narrow" or "wide"), at most some fifteen shapes at a time.

    clusters: K may also be shared out over the blocks of one, which needs sm_90. warps: so may the number of its parts,
    which is common to all three launches and decides the bits. Not all of these shapes are launchable."""

    def tiling(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_changed(shape, part, tiles=t, split=s) for t in TILES for s in (SPLITS if clusters else (1,))]

    def spread(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        depths = sorted(DEPTHS, key=lambda d: abs(d - getattr(shape, part).depth))[:NEAR]
        return [_changed(shape, part, depth=d, grid=g) for d in depths for g in BLOCKS]

    def stream(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        now = getattr(shape, part)
        once, left = divmod(key[1] // 16, shape.warps)  # the depth that takes all of K at once
        ways = [
            (now.ring, now.once, now.depth),
            *((False, False, d) for d in REGISTERS),
            *((True, False, d) for d in RING),
        ]
        if not left and once in DEPTHS:
            ways.append((False, True, once))
        return [
            _changed(shape, part, ring=r, once=o, depth=d, blocks=b) for r, o, d in dict.fromkeys(ways) for b in BLOCKS
        ]

    def cutting(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_cut(shape, n, key[1] // 16) for n in WARPS if n <= key[1] // 16]

    def staging(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_changed(shape, part, staged=not getattr(shape, part).staged)]

    return tiling, spread, stream, *((cutting,) if warps else ()), staging


def _changed(shape: DecodeShape, part: str, **fields: Any) -> DecodeShape:
    return replace(shape, **{part: replace(getattr(shape, part), **fields)})


def _cut(shape: DecodeShape, warps: int, tiles_k: int) -> DecodeShape:
    """K in so many parts. A launch that takes it at once needs the depth that goes with that."""

    def fit(launch: Launch) -> Launch:
        return replace(launch, depth=tiles_k // warps) if launch.once else launch

    return DecodeShape(warps, fit(shape.single), fit(shape.narrow), fit(shape.wide))
