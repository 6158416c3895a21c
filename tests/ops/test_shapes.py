"""Launch shapes: what they must keep whatever the table says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from instances import DECODE_SHAPES, PREFILL_SHAPES, TYPES

from ostinato.ops.shapes import DECODE, PREFILL, DecodeShape, Launch, decode_shape, prefill_shape, rule, shared_limit

MATRICES = [
    *((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576)),
    *((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192), (128256, 2048)),
    *((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (48, 16)),
]


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize(("n", "k"), MATRICES)
def test_decode_fits(n, k, itemsize):
    """Registers of the resident blocks and shared memory stay within what an SM has; columns up to 16 are covered."""
    shape = decode_shape(n, k, itemsize)
    for rows in (1, 8, 9, 16):
        assert shape.warps * 32 * shape.launch(rows).blocks <= 2048
        assert shape.reduction(rows) <= shared_limit(89)
        assert int(shape.template(rows).split(", ")[2]) * 8 >= rows


def test_order_of_sums_is_one_number_a_matrix():
    """The wide launch cannot split K otherwise than the narrow one: both read `warps` of the shape."""
    for key in [(960, 576, 2), (4096, 14336, 2), *DECODE]:
        shape = decode_shape(*key)
        assert {shape.template(rows).split(", ")[0] for rows in range(1, 17)} == {str(shape.warps)}


SHAPE = DecodeShape(16, Launch(1, 4, 2, False), Launch(1, 4, 2, True))
NARROW = DecodeShape(8, Launch(2, 3, 4, True), Launch(2, 2, 1, False))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        pytest.param(SHAPE, "", id="good"),
        pytest.param(replace(SHAPE, warps=6), "warps: expected one of (4, 8, 12, 16), found 6", id="warps"),
        pytest.param(replace(SHAPE, narrow=Launch(3, 1, 1, True)), "narrow.tiles: expected one of", id="tiles"),
        pytest.param(replace(SHAPE, wide=Launch(1, 9, 1, True)), "wide.depth: expected one of", id="depth"),
        pytest.param(replace(SHAPE, wide=Launch(1, 0, 1, True)), "wide.depth: expected one of", id="no-depth"),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 3, True)), "narrow.blocks: expected one of", id="blocks"),
        pytest.param(replace(SHAPE, narrow=Launch(1, 1, 4, True)), "narrow.blocks: expected at most 2", id="threads"),
        pytest.param(replace(NARROW, wide=Launch(4, 1, 1, True)), "wide.tiles: expected at most 2", id="sums"),
        pytest.param(replace(SHAPE, wide=Launch(4, 1, 1, True)), "wide: expected at most 101376 bytes", id="shared"),
    ],
)
def test_refusal(shape: DecodeShape, says: str) -> None:
    found = shape.refusal(shared_limit(89))
    assert found.startswith(says) and bool(found) == bool(says)


def test_what_is_built_in_can_be_launched() -> None:
    """By every GPU, whatever the rule gives; the table as well, and in order, so that a line is found."""
    chosen = {**{(*key, size): rule(*key, size) for key in MATRICES for size in (2, 4)}, **DECODE}
    assert {key: reason for key, s in chosen.items() if (reason := s.refusal(shared_limit(89)))} == {}
    assert list(DECODE) == sorted(DECODE)
    assert {key for key, s in DECODE.items() if s.warps != rule(*key).warps} == set(), "other bits than by the rule"


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120, 999])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_prefill_fits_every_gpu(arch, itemsize):
    for tiles in (3, 36, 1792):
        for rows in (64, 128, 2048):
            shape = prefill_shape(tiles, rows, itemsize, 132, shared_limit(arch))
            assert shape.shared <= shared_limit(arch) and shape.threads <= 1024
            along_rows, along_tiles = shape.grid(tiles, rows)
            assert along_rows * shape.tokens >= rows and along_tiles * shape.row_tiles >= tiles


def test_prefill_prefers_large_tiles_only_when_they_fill_the_gpu():
    largest, *_, smallest = PREFILL[2]
    assert prefill_shape(1792, 2048, 2, 132, shared_limit(90)) == largest
    assert prefill_shape(36, 64, 2, 132, shared_limit(90)) == smallest
    assert prefill_shape(1792, 2048, 2, 132, smallest.shared) == smallest


@pytest.mark.parametrize("t", TYPES)
def test_instances_are_complete(t):
    """Every shape that the rule and the table give is compiled by the tests for every GPU; the table's as bf16 only."""
    itemsize = 4 if t == "float" else 2
    narrow, wide = DECODE_SHAPES[t]
    measured = [] if t == "half" else [shape for (_, _, size), shape in DECODE.items() if size == itemsize]
    for shape in [*(rule(n, k, itemsize) for n, k in MATRICES), *measured]:
        assert shape.template(8) in narrow and shape.template(16) in wide
    assert [s.template for s in PREFILL[itemsize]] == PREFILL_SHAPES[t]


def test_table_goes_first(monkeypatch):
    changed = replace(decode_shape(96, 64, 2), warps=2)
    monkeypatch.setitem(DECODE, (97, 64, 2), changed)
    assert decode_shape(97, 64, 2) == changed
    decode_shape.cache_clear()
