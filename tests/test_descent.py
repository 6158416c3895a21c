"""Coordinate descent over launch shapes: with a simulated clock, and the candidates of its axes."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from ostinato.ops.shapes import DecodeShape, Launch, shared_limit
from ostinato.tools import descent

SHAPE = DecodeShape(16, Launch(1, 4, 2, 2), Launch(1, 12, 1, 1, ring=True), Launch(1, 4, 2, 2, staged=True))
FAST = DecodeShape(8, Launch(2, 3, 4, 2, 4), Launch(2, 3, 4, 1, 8, staged=True), Launch(2, 10, 1, 1, 2, ring=True))
A, B = (960, 576, 2), (576, 1536, 2)
RING = Launch(2, 8, 1, 1, ring=True)


def distance(shape: DecodeShape, goal: DecodeShape, part: str) -> float:
    """Sum of the differences of the fields of one launch."""
    launch, other = getattr(shape, part), getattr(goal, part)
    steps = sum(abs(getattr(launch, f.name) - getattr(other, f.name)) for f in fields(Launch))
    return steps + abs(shape.warps - goal.warps)


@pytest.mark.parametrize("warps", [True, False], ids=["with-warps", "warps-kept"])
@pytest.mark.parametrize("part", ["single", "narrow", "wide"])
def test_descent_finds_the_fastest(part: str, warps: bool) -> None:
    goals = {A: FAST, B: replace(FAST, **{part: Launch(4, 16, 1, 4, ring=True)})}

    def time(table: descent.Table) -> float:
        return 10 + sum(distance(table[key], goal, part) for key, goal in goals.items())

    found = descent.descend({A: SHAPE, B: SHAPE}, descent.axes(part, clusters=True, warps=warps), time)
    for key, goal in goals.items():
        wanted = replace(SHAPE, **{part: getattr(goal, part)}, warps=goal.warps if warps else SHAPE.warps)
        assert found[key] == wanted, "nothing of the other parts"


@pytest.mark.parametrize(("ms", "taken"), [(0.998, False), (0.996, True)], ids=["below-the-gain", "beyond-it"])
def test_descent_takes_what_gains(ms: float, taken: bool) -> None:
    found = descent.descend({A: SHAPE}, [lambda key, shape: [FAST]], lambda table: ms if table[A] == FAST else 1.0)
    assert (found[A] == FAST) == taken


def test_descent_times_a_winner_again() -> None:
    times = iter([1.0, 0.5, 1.0, 1.0])  # start, a lucky candidate, the candidate again, start again
    found = descent.descend({A: SHAPE}, [lambda key, shape: [FAST]], lambda table: next(times))
    assert found == {A: SHAPE} and next(times, None) is None


def test_descent_ends_in_time_and_reports_accepted_shapes() -> None:
    clock, told = iter(range(100)), []
    slower = [replace(SHAPE, single=Launch(1, d, 2, 2)) for d in (3, 2, 1)]

    def time(table: descent.Table) -> float:
        return float(1 + table[A].single.depth)

    found = descent.descend(
        {A: SHAPE}, [lambda key, shape: slower], time, lambda: next(clock) >= 3, lambda *what: told.append(what)
    )
    assert found == {A: slower[1]}
    assert told == [(A, slower[0], 4.0, 5.0), (A, slower[1], 3.0, 4.0)]


@pytest.mark.parametrize("warps", [True, False], ids=["with-warps", "warps-kept"])
@pytest.mark.parametrize("clusters", [True, False], ids=["clusters", "no-clusters"])
@pytest.mark.parametrize("part", ["single", "narrow", "wide"])
def test_axes_change_one_part(part: str, clusters: bool, warps: bool) -> None:
    for start in (SHAPE, FAST) if clusters else (SHAPE,):
        found = [list(axis((64, 128, 2), start)) for axis in descent.axes(part, clusters, warps)]
        every = [shape for shapes in found for shape in shapes]
        assert max(map(len, found)) <= 16, "a search takes its time"
        assert {replace(s, warps=start.warps, **{part: getattr(start, part)}) for s in every} == {start}
        assert {s.warps for s in every} == ({start.warps, 4, 8} if warps else {start.warps}), "there are 8 tiles of k"
        launches = [getattr(s, part) for s in every]
        assert {v.split for v in launches} == ({1, 2, 4, 8} if clusters else {1})
        assert {v.ring for v in launches} == {v.staged for v in launches} == {False, True}
        assert {v.blocks for v in launches} == {v.grid for v in launches} == {1, 2, 4}


def test_a_changed_weight_pipeline_has_a_fitting_depth() -> None:
    for now in (SHAPE.single, SHAPE.narrow, FAST.narrow, FAST.wide):
        shape = replace(SHAPE, narrow=now)
        axes = descent.axes("narrow", clusters=True, warps=False)
        turned = [s.narrow for axis in axes for s in axis((960, 592, 2), shape) if s.narrow.ring != now.ring]
        assert {v.depth for v in turned} == ({4} if now.ring else {4, 8})


def test_register_resident_weights_have_the_matching_depth() -> None:
    found = [s for axis in descent.axes("narrow", clusters=True, warps=True) for s in axis(A, replace(SHAPE, warps=12))]
    assert {(s.warps, s.narrow.depth) for s in found if s.narrow.once} == {(12, 3)}, "36 tiles of k"
    launch = Launch(1, 4, 1, 1, once=True)
    once = DecodeShape(8, launch, launch, Launch(1, 3, 1, 1))
    key = 960, 512, 2  # 32 tiles of k
    cut = list(descent.axes("narrow", clusters=True, warps=True)[3](key, once))
    depths = {s.warps: (s.single.depth, s.narrow.depth, s.wide.depth) for s in cut}
    assert depths == {4: (8, 8, 3), 8: (4, 4, 3), 12: (2, 2, 3), 16: (2, 2, 3)}
    assert [s.warps for s in cut if not s.refusal(key, shared_limit(90))] == [4, 8, 16]


@pytest.mark.parametrize(
    ("shape", "itemsize", "arch", "expected"),
    [
        pytest.param(SHAPE, 2, 90, True, id="fits"),
        pytest.param(SHAPE, 2, 89, False, id="less-shared-memory"),
        pytest.param(replace(SHAPE, single=RING), 2, 90, True, id="ring"),
        pytest.param(replace(SHAPE, single=RING), 4, 90, False, id="ring-of-float32"),
        pytest.param(replace(SHAPE, single=Launch(1, 4, 4, 1)), 2, 90, False, id="too-many-threads"),
        pytest.param(replace(FAST, warps=12), 2, 90, False, id="warps-that-narrow-cannot-have"),
    ],
)
def test_refusal_is_by_elements(shape: DecodeShape, itemsize: int, arch: int, expected: bool) -> None:
    assert (not shape.refusal((960, 576, itemsize), shared_limit(arch))) == expected
