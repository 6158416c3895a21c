"""Coordinate descent over launch shapes: candidates, their order, and when one is accepted. Runs nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..ops.shapes import BLOCKS, DEPTHS, SPLITS, TILES, WARPS, DecodeShape, Key, Launch

Table = dict[Key, DecodeShape]
Axis = Callable[[Key, DecodeShape], Iterable[DecodeShape]]  # neighbours of a shape along one coordinate

GAIN = 0.003  # relative gain of a step above which a shape is accepted
REGISTERS, RING = (4,), (4, 8)  # pipeline depths to try when switching to registers or to the ring buffer
NEAR = 5  # depths tried around the current one


def descend(
    start: Table,
    axes: Sequence[Axis],
    time: Callable[[Table], float],
    over: Callable[[], bool] = lambda: False,
    taken: Callable[[Key, DecodeShape, float, float], None] = lambda key, shape, new, old: None,
) -> Table:
    """Minimise time(table), changing one matrix along one axis at a time. Stops early once over().

    A candidate that is faster by more than GAIN is timed again next to the current best, and must win again.
    taken(key, shape, ms with it, ms before) is called for each accepted change."""
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
    """The axes of the launch `part` ("single", "narrow" or "wide"), each with at most about fifteen neighbours.

    clusters: also try cluster split-K, which needs sm_90. warps: also try the number of K parts, which all three
    launches share and which decides the bits. Not all of these shapes are launchable."""

    def tiling(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        return [_changed(shape, part, tiles=t, split=s) for t in TILES for s in (SPLITS if clusters else (1,))]

    def spread(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        depths = sorted(DEPTHS, key=lambda d: abs(d - getattr(shape, part).depth))[:NEAR]
        return [_changed(shape, part, depth=d, grid=g) for d in depths for g in BLOCKS]

    def stream(key: Key, shape: DecodeShape) -> list[DecodeShape]:
        now = getattr(shape, part)
        once, left = divmod(key[1] // 16, shape.warps)  # depth at which a warp holds its whole part of K in registers
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
    """Split K into `warps` parts. A fully register-resident launch needs the matching depth."""

    def fit(launch: Launch) -> Launch:
        return replace(launch, depth=tiles_k // warps) if launch.once else launch

    return DecodeShape(warps, fit(shape.single), fit(shape.narrow), fit(shape.wide))
