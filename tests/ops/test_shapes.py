"""Launch shapes: invariants of the rule and of the table."""

from __future__ import annotations

from dataclasses import replace

import pytest
from instances import INSTANCES, PREFILL_SHAPES, TYPES, on

from ostinato.ops.shapes import (
    DECODE,
    MEASURED,
    PREFILL,
    DecodeShape,
    Launch,
    decode_shape,
    prefill_shape,
    rule,
    shared_limit,
)

MATRICES = [
    *((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    *((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)),
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (48, 16)),
]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("n", "k"), MATRICES)
def test_decode_fits(n, k, itemsize):
    """Registers and shared memory of the resident blocks fit on an SM; up to 16 columns are covered."""
    for arch, shape in ((89, rule(n, k, itemsize)), (90, decode_shape(n, k, itemsize))):
        for rows in (1, 8, 9, 16):
            assert shape.warps * 32 * shape.launch(rows).blocks <= 2048
            assert shape.shared(rows, k, itemsize, "DIRECT") <= shared_limit(arch)
            assert int(shape.template(rows).split(", ")[3]) >= rows


def test_order_of_sums_is_one_number_a_matrix():
    """All launches of a matrix split K in the same way, because they share `warps`."""
    for key in [(960, 576, 2), (4096, 14336, 2), *DECODE]:
        shape = decode_shape(*key)
        assert {shape.template(rows).split(", ")[0] for rows in range(1, 17)} == {f"Shape<{shape.warps}"}


def test_only_the_measured_gpu_gets_clusters():
    for n, k in MATRICES:
        for arch in (80, 89):
            shape = decode_shape(n, k, 2, arch)
            assert {shape.launch(rows).split for rows in (1, 8, 16)} == {1}


SHAPE = DecodeShape(16, Launch(1, 4, 2, 2), Launch(1, 4, 2, 2), Launch(1, 4, 2, 2, staged=True))
ONCE = DecodeShape(12, Launch(2, 3, 1, 1, once=True), Launch(1, 3, 1, 1, staged=True, once=True), Launch(1, 3, 1, 1))
SMALL = DecodeShape(8, Launch(2, 3, 4, 4), Launch(2, 3, 4, 4), Launch(2, 2, 1, 1))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        pytest.param(SHAPE, "", id="good"),
        pytest.param(replace(SHAPE, warps=6), "warps: expected one of (4, 8, 12, 16), found 6", id="warps"),
        pytest.param(replace(SHAPE, single=Launch(3, 1, 1, 1)), "single.tiles: expected one of", id="tiles"),
        pytest.param(replace(SHAPE, wide=Launch(1, 9, 1, 1)), "wide.depth: expected one of", id="depth"),
        pytest.param(replace(SHAPE, wide=Launch(1, 0, 1, 1)), "wide.depth: expected one of", id="no-depth"),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 3, 1)), "narrow.blocks: expected one of", id="blocks"),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 1, 3)), "narrow.grid: expected one of", id="grid"),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 1, 1, 3)), "narrow.split: expected one of", id="split"),
        pytest.param(
            replace(SHAPE, warps=12, wide=Launch(1, 1, 1, 1, 8)), "wide.split: expected a divisor of 12", id="divisor"
        ),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 4, 1)), "narrow.blocks: expected at most 2", id="threads"),
        pytest.param(replace(SMALL, wide=Launch(4, 1, 1, 1)), "wide.tiles: expected at most 2", id="sums"),
        pytest.param(replace(SHAPE, wide=Launch(4, 1, 1, 1)), "wide: expected at most 101376 bytes", id="shared"),
        pytest.param(
            replace(SHAPE, narrow=Launch(1, 12, 1, 1, ring=True)), "narrow: expected at most 101376 bytes", id="ring"
        ),
        pytest.param(ONCE, "", id="once"),
        pytest.param(
            replace(ONCE, single=Launch(2, 4, 1, 1, once=True)), "single.depth: expected 3 at once,", id="too-deep"
        ),
        pytest.param(replace(ONCE, warps=16), "single.depth: expected 2.25 at once,", id="parts-of-other-sizes"),
        *(
            pytest.param(replace(ONCE, narrow=launch), "narrow.once: expected tiles that divide 60,", id=f"once-{what}")
            for what, launch in (
                ("in-clusters", Launch(1, 3, 1, 1, 2, once=True)),
                ("in-a-ring", Launch(1, 3, 1, 1, ring=True, once=True)),
            )
        ),
    ],
)
def test_refusal(shape: DecodeShape, says: str) -> None:
    found = shape.refusal((960, 576, 2), shared_limit(89))
    assert found.startswith(says) and bool(found) == bool(says)


def test_leftover_rows_are_not_register_resident() -> None:
    """Register-resident weights need whole groups: 36 tiles are not groups of 8, and 58 rows are not tiles."""
    for n, says in ((576, ""), (592, "single.once: expected tiles that divide 37,"), (570, "single.once: expected")):
        assert ONCE.refusal((n, 576, 2), shared_limit(90)).startswith(says) and bool(says) == (n != 576)


def test_what_is_built_in_can_be_launched() -> None:
    """The rule's shapes are launchable on every GPU, the table's on its own GPU; the table is sorted."""
    chosen = {(*key, size): rule(*key, size) for key in MATRICES for size in (2, 4)}
    assert {key: reason for key, s in chosen.items() if (reason := s.refusal(key, shared_limit(89)))} == {}
    assert {key: reason for key, s in DECODE.items() if (reason := s.refusal(key, shared_limit(MEASURED)))} == {}
    assert list(DECODE) == sorted(DECODE, key=lambda key: (*key[:2], str(key[2])))
    assert {key for key, s in DECODE.items() if s.warps != rule(*key).warps} == set(), "other sums than by the rule"


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120, 999])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_prefill_fits_every_gpu(arch, itemsize):
    for tiles in (3, 36, 1792):
        for rows in (64, 128, 2048):
            shape = prefill_shape(tiles, rows, itemsize, 132, shared_limit(arch))
            along_rows, along_tiles = shape.grid(tiles, rows)
            assert shape.shared <= shared_limit(arch)
            assert along_rows * 16 * shape.cols >= rows and along_tiles * 2 * shape.tiles >= tiles


def test_prefill_prefers_large_tiles_only_when_they_fill_the_gpu():
    smallest, *_, largest = PREFILL[2]
    assert prefill_shape(1792, 2048, 2, 132, shared_limit(90)) == largest
    assert prefill_shape(36, 64, 2, 132, shared_limit(90)) == smallest
    assert prefill_shape(1792, 2048, 2, 132, smallest.shared) == smallest


@pytest.mark.parametrize("t", TYPES)
@pytest.mark.parametrize("kernel", ["decode_store", "decode_add", "decode_gate", "decode_qkv", "decode_gelu"])
def test_instances_are_complete(kernel, t):
    """tests/instances.py lists every shape of the rule, for every GPU."""
    itemsize = 4 if t == "float" else 2
    names = [name for name in INSTANCES["linear_decode.cu"] if name.startswith(f"{kernel}<{t}")]
    for shape in (rule(n, k, itemsize) for n, k in MATRICES):
        for rows in (1, 8, 16):
            assert any(name.endswith(f" {shape.template(rows)}>") for name in names)
    assert [s.template for s in PREFILL[itemsize]] == PREFILL_SHAPES[t]


def test_every_measured_shape_has_an_instance():
    names = on(MEASURED)["linear_decode.cu"]
    for shape in DECODE.values():
        for rows in (1, 8, 16):
            assert any(name.endswith(f" {shape.template(rows)}>") for name in names)


@pytest.mark.parametrize(
    ("arch", "launch", "expected"),
    [
        pytest.param(90, Launch(1, 3, 1, 1), "DIRECT", id="not-asked-for"),
        pytest.param(90, Launch(1, 3, 1, 1, staged=True), "STAGED", id="room"),
        pytest.param(89, Launch(1, 3, 1, 1, staged=True), "DIRECT", id="no-room-on-a-small-gpu"),
        pytest.param(90, Launch(2, 6, 1, 1, staged=True, ring=True), "DIRECT", id="no-room-beside-the-ring"),
        pytest.param(90, Launch(2, 6, 1, 1, 8, staged=True, ring=True), "STAGED", id="room-in-a-cluster"),
        pytest.param(90, Launch(1, 16, 1, 1, staged=True, once=True), "STAGED", id="room-at-once"),
        pytest.param(89, Launch(1, 16, 1, 1, staged=True, once=True), "DIRECT", id="no-room-at-once"),
    ],
)
def test_where_x_is_taken_from(arch, launch, expected):
    shape = DecodeShape(16, launch, launch, launch)
    assert shape.source(16, 4096, 2, shared_limit(arch)) == (expected, shape.shared(16, 4096, 2, expected))


def test_table_goes_first(monkeypatch):
    changed = replace(decode_shape(96, 64, 2), warps=2)
    monkeypatch.setitem(DECODE, (97, 64, 2), changed)
    assert decode_shape(97, 64, 2) == changed
    decode_shape.cache_clear()
