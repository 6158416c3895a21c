"""Decode attention against float64; a row's bits depend on its own sequence only."""

from __future__ import annotations

import numpy as np
import pytest
from rows import EPS, TYPES, Memory, RowOps, close, scratch, step

from ostinato.errors import DeviceError
from ostinato.sizes import PAGE

SHAPES = [  # heads, key/value heads, head size
    pytest.param(2, 2, 16, id="1x16"),
    pytest.param(4, 2, 32, id="2x32"),
    pytest.param(3, 1, 48, id="3x48"),
    pytest.param(9, 3, 64, id="3x64"),
    pytest.param(4, 1, 80, id="4x80"),
    pytest.param(5, 1, 96, id="5x96"),
    pytest.param(6, 1, 112, id="6x112"),
    pytest.param(8, 1, 128, id="8x128"),
    pytest.param(14, 2, 64, id="7x64"),
    pytest.param(16, 2, 32, id="8x32-all-heads-of-a-block"),
    pytest.param(32, 2, 32, id="16x32-all-heads-of-a-block"),
    pytest.param(34, 2, 32, id="17x32-two-blocks-a-head"),
    pytest.param(16, 8, 64, id="2x64-in-half-the-registers"),
    pytest.param(11, 1, 128, id="11x128"),
    pytest.param(35, 1, 32, id="35x32"),
    pytest.param(9, 1, 192, id="9x192"),
    pytest.param(2, 1, 256, id="2x256"),
]


def run(device, memory, dtype, heads, queries, seqs, visible, window):
    """Output [R, H, d] of rows `queries` [R, H, d]."""
    g, d = memory.keys[0].shape[1:]
    ops = RowOps(device, dtype)
    rows = len(queries)
    qkv = np.full((rows, (heads + 2 * g) * d), np.nan, dtype)
    qkv[:, : heads * d] = queries.reshape(rows, -1)
    out = device.upload(np.full((rows, heads * d), np.nan, dtype))
    s = step(device, seqs, np.array(visible) - 1, visible, memory.table)
    work = scratch(device, rows, heads, g, d, np.dtype(dtype), memory.table.shape[1])
    for _ in range(2):  # the second launch uses the tickets that the first one reset
        ops.attend(device.upload(qkv), s, memory.cache, heads, window, out, work)
    assert not device.read(work.arrived).any()
    return device.read(out).reshape(rows, heads, d)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "g", "d"), SHAPES)
def test_shapes(device, dtype, heads, g, d):
    rng = np.random.default_rng(1)
    memory = Memory.of(device, rng, [70, 300], g, d, TYPES[dtype])
    queries = rng.standard_normal((2, heads, d)).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], heads, queries, [1, 0], [300, 70], 0)
    for row, (seq, n) in enumerate([(1, 300), (0, 70)]):
        close(found[row], memory.attend(queries[row], seq, n, 0), 2 * EPS[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("heads", "g"), [pytest.param(4, 2, id="2-heads"), pytest.param(32, 2, id="16-heads")])
def test_scores_far_apart(device, dtype, heads, g):
    """Weights overflow unless they are relative to the head's largest score over all tokens, warps and splits."""
    rng = np.random.default_rng(9)
    memory = Memory.of(device, rng, [600], g, 32, TYPES[dtype])
    queries = (300 * rng.standard_normal((1, heads, 32))).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], heads, queries, [0], [600], 0)
    close(found[0], memory.attend(queries[0], 0, 600, 0), 2 * EPS[dtype])


@pytest.mark.parametrize("tokens", [600, 40])
def test_all_scores_far_below_zero(device, tokens):
    """The maximum is over tokens, warps and splits that are there: a 0 from anywhere else would drown all weights."""
    rng = np.random.default_rng(10)
    memory = Memory.of(device, rng, [tokens], 1, 32, TYPES["bfloat16"], mean=4)
    queries = np.full((1, 2, 32), -100, TYPES["bfloat16"])  # scores of about -2,300
    found = run(device, memory, TYPES["bfloat16"], 2, queries, [0], [tokens], 0)
    close(found[0], memory.attend(queries[0], 0, tokens, 0), 2 * EPS["bfloat16"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [0, 1, 40, 256, 257])
@pytest.mark.parametrize("n", [1, PAGE - 1, PAGE, PAGE + 1, 255, 256, 257, 513, 900])
def test_lengths(device, dtype, window, n):
    rng = np.random.default_rng(n)
    memory = Memory.of(device, rng, [n], 1, 32, TYPES[dtype])
    queries = rng.standard_normal((1, 2, 32)).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], 2, queries, [0], [n], window)
    close(found[0], memory.attend(queries[0], 0, n, window), 2 * EPS[dtype])


@pytest.mark.parametrize("pages", [1, 2])
def test_full_pages_of_the_last_sequence_of_the_table(device, pages):
    """Warps whose tokens begin at or beyond the row's end must not read the block table, here beyond its end."""
    rng, n = np.random.default_rng(8), pages * PAGE
    memory = Memory.of(device, rng, [n] * 4, 1, 32, TYPES["bfloat16"])
    memory.table = memory.table[:4]  # without padding rows; memory ends right behind the table
    queries = rng.standard_normal((1, 2, 32)).astype(TYPES["bfloat16"])
    found = run(device, memory, TYPES["bfloat16"], 2, queries, [3], [n], 0)
    close(found[0], memory.attend(queries[0], 3, n, 0), 2 * EPS["bfloat16"])


@pytest.mark.parametrize("heads", [1, 8])
def test_more_tiles_than_splits(device, heads):
    """Beyond 64 tiles a split has two tiles: each head's sums are rescaled to its own new maximum."""
    rng = np.random.default_rng(3)
    n = 64 * 256 + 3
    memory = Memory.of(device, rng, [n], 1, 16, TYPES["float16"])
    queries = rng.standard_normal((1, heads, 16)).astype(np.float16)
    found = run(device, memory, np.float16, heads, queries, [0], [n], 0)
    close(found[0], memory.attend(queries[0], 0, n, 0), EPS["float16"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_same_bits_alone_in_a_batch_and_on_any_grid(device, dtype, monkeypatch):
    rng = np.random.default_rng(4)
    lengths = [600, 1, 64, 257, 513]
    memory = Memory.of(device, rng, lengths, 1, 64, TYPES[dtype])
    queries = rng.standard_normal((7, 3, 64)).astype(TYPES[dtype])
    seqs, visible = [*range(5), 5, 5], [*lengths, 1, 1]  # two padding rows
    together = run(device, memory, TYPES[dtype], 3, queries, seqs, visible, 0)
    for r in range(5):
        alone = run(device, memory, TYPES[dtype], 3, queries[r : r + 1], [r], [lengths[r]], 0)
        np.testing.assert_array_equal(alone[0], together[r])
    monkeypatch.setattr(device, "multiprocessors", 1)  # one block per row takes all splits
    np.testing.assert_array_equal(run(device, memory, TYPES[dtype], 3, queries, seqs, visible, 0), together)


@pytest.mark.parametrize("positions", [[69, 70, 71], [71, 69, 70], [63, 64, 65]], ids=["up", "mixed", "two-pages"])
def test_rows_of_one_sequence_wait_for_each_other(shuffled, positions):
    """A step may have several rows of one sequence: all of their tokens are new, not only the row's own."""
    rng = np.random.default_rng(7)
    g, d, dtype = 1, 64, TYPES["bfloat16"]
    memory = Memory.of(shuffled, rng, [40, 72], g, d, dtype)
    ops, seqs = RowOps(shuffled, dtype), [1, 0, 1, 1]  # the first and last block are checked for early reads
    positions = [positions[0], 39, *positions[1:]]
    visible = [p + 1 for p in positions]
    new = np.stack([rng.standard_normal((4, g, d)).astype(dtype), rng.standard_normal((4, g, d)).astype(dtype)], 1)
    for row, (seq, p) in enumerate(zip(seqs, positions, strict=True)):
        memory.keys[seq][p], memory.values[seq][p] = new[row]
    queries = rng.standard_normal((4, 2, d)).astype(dtype)
    qkv = shuffled.upload(np.concatenate([queries.reshape(4, -1), new.reshape(4, -1)], 1))
    s, out = step(shuffled, seqs, positions, visible, memory.table), shuffled.empty((4, 2 * d), dtype)
    work = scratch(shuffled, 4, 2, g, d, dtype, memory.table.shape[1])
    ops.append(qkv, s, memory.cache, 2)
    ops.attend(qkv, s, memory.cache, 2, 0, out, work)
    for row, found in enumerate(shuffled.read(out).reshape(4, 2, d)):
        close(found, memory.attend(queries[row], seqs[row], visible[row], 0), 2 * EPS["bfloat16"])


def test_order_of_threads_does_not_matter(shuffled):
    rng = np.random.default_rng(5)
    memory = Memory.of(shuffled, rng, [600, 65], 1, 32, TYPES["bfloat16"])
    queries = rng.standard_normal((2, 3, 32)).astype(TYPES["bfloat16"])
    run(shuffled, memory, TYPES["bfloat16"], 3, queries, [0, 1], [600, 65], 0)


def test_refuses_what_does_not_fit(device):
    rng = np.random.default_rng(6)
    memory = Memory.of(device, rng, [70], 1, 32, TYPES["float32"])
    ops = RowOps(device, np.float32)
    s = step(device, [0], [69], [70], memory.table)
    small = scratch(device, 1, 2, 1, 32, np.dtype(np.float32), 1)
    qkv, out = device.empty((1, 128), np.dtype(np.float32)), device.empty((1, 64), np.dtype(np.float32))
    with pytest.raises(DeviceError, match=r"attend: expected qkv to be float32 \[1, 160\], found float32 \[1, 128\]"):
        ops.attend(qkv, s, memory.cache, 3, 0, out, small)
    with pytest.raises(DeviceError, match=r"attend: expected a window of 0 \(off\) or more tokens, found -1"):
        ops.attend(qkv, s, memory.cache, 2, -1, out, small)
    rows = device.empty((17, 128), np.dtype(np.float32))
    s = step(device, [0] * 17, [0] * 17, [1] * 17, memory.table)
    with pytest.raises(DeviceError, match=r"attend: expected at most 16 rows in a decode pass, found 17"):
        ops.attend(rows, s, memory.cache, 2, 0, device.empty((17, 64), np.dtype(np.float32)), small)
