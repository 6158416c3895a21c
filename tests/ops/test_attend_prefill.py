"""Prefill attention against float64; a row's bits depend on its own visible tokens only."""

from __future__ import annotations

import numpy as np
import pytest
from rows import EPS, TYPES, Memory, RowOps, close, step

from ostinato.errors import DeviceError
from ostinato.ops.base import PassKind
from ostinato.sizes import PAGE

SHAPES = [  # heads, key/value heads, head size
    pytest.param(1, 1, 16, id="1x16"),
    pytest.param(2, 1, 32, id="2x32"),
    pytest.param(3, 1, 48, id="3x48"),
    pytest.param(3, 3, 64, id="1x64"),
    pytest.param(4, 1, 80, id="4x80"),
    pytest.param(2, 2, 96, id="1x96"),
    pytest.param(1, 1, 112, id="1x112"),
    pytest.param(8, 1, 128, id="8x128"),
    pytest.param(1, 1, 192, id="1x192"),
    pytest.param(2, 1, 256, id="2x256"),
]


def tiles(parts: list[tuple[int, int, int]], spare: int, encoder: bool = False):
    """(seqs, positions, visible, mask of real rows) of a pass over parts (sequence, first position, tokens).

    Every part begins a tile. encoder: parts are adjacent, and a token attends to all of its part."""
    seqs, positions, visible = [], [], []
    for i, (seq, first, n) in enumerate(parts):
        fill = -n % PAGE if not encoder else -(len(seqs) + n) % PAGE if i + 1 == len(parts) else 0
        seqs += [seq] * n + [spare] * fill
        positions += [*range(first, first + n)] + [0] * fill
        visible += ([first + n] * n if encoder else [*range(first + 1, first + n + 1)]) + [1] * fill
    return np.array(seqs), np.array(positions), np.array(visible), np.array(seqs) != spare


def run(device, memory, dtype, heads, queries, parts, window=0, encoder=False):
    """Outputs [real rows, H, d] for queries [real rows, H, d] of `parts`."""
    g, d = memory.keys[0].shape[1:]
    seqs, positions, visible, real = tiles(parts, len(memory.keys), encoder)
    qkv = np.full((len(seqs), (heads + 2 * g) * d), np.nan, dtype)
    qkv[:, : heads * d] = 1
    qkv[real, : heads * d] = queries.reshape(len(queries), -1)
    out = device.upload(np.full((len(seqs), heads * d), np.nan, dtype))
    kind = PassKind.ENCODER if encoder else PassKind.PREFILL
    s = step(device, seqs, positions, visible, memory.table, kind)
    RowOps(device, dtype).attend(device.upload(qkv), s, memory.cache, heads, window, out, None)
    out = device.read(out)
    assert np.isfinite(out.astype(float)).all()  # padding rows too: their values pass through the layer
    return out.reshape(len(seqs), heads, d)[real]


def expected(memory, queries, parts, window=0):
    rows = [(seq, p + 1) for seq, first, n in parts for p in range(first, first + n)]
    return np.stack([memory.attend(q, seq, seen, window) for q, (seq, seen) in zip(queries, rows, strict=True)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("heads", "g", "d"), SHAPES)
def test_shapes(device, dtype, heads, g, d):
    rng = np.random.default_rng(1)
    memory, parts = Memory.of(device, rng, [70], g, d, TYPES[dtype]), [(0, 0, 70)]
    queries = rng.standard_normal((70, heads, d)).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], heads, queries, parts)
    close(found, expected(memory, queries, parts), 2 * EPS[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_far_apart(device, dtype):
    """Weights overflow unless they are relative to the row's largest score so far."""
    rng = np.random.default_rng(9)
    memory, parts = Memory.of(device, rng, [140], 1, 32, TYPES[dtype]), [(0, 0, 140)]
    queries = (300 * rng.standard_normal((140, 2, 32))).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], 2, queries, parts)
    close(found, expected(memory, queries, parts), 2 * EPS[dtype])


def test_all_scores_far_below_zero(device):
    """The maximum is over the keys a row sees: a 0 from anywhere else would drown all weights."""
    rng = np.random.default_rng(10)
    memory, parts = Memory.of(device, rng, [140], 1, 32, TYPES["bfloat16"], mean=4), [(0, 0, 140)]
    queries = np.full((140, 2, 32), -100, TYPES["bfloat16"])  # scores of about -2,300
    found = run(device, memory, TYPES["bfloat16"], 2, queries, parts)
    close(found, expected(memory, queries, parts), 2 * EPS["bfloat16"])


BATCHES = [  # (sequence, first position, tokens)
    pytest.param([(0, 0, 1), (1, 0, 63), (2, 0, 64)], id="short"),
    pytest.param([(2, 0, 65)], id="page-plus-one"),
    pytest.param([(1, 0, 150), (0, 0, 2)], id="ragged"),
    pytest.param([(2, 130, 70), (1, 149, 1)], id="chunks-of-longer-prompts"),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [0, 1, 40, 64, 100])
@pytest.mark.parametrize("parts", BATCHES)
def test_batches(device, dtype, window, parts):
    rng = np.random.default_rng(2)
    lengths = [2, 150, 200]
    for seq, first, n in parts:
        lengths[seq] = first + n
    memory = Memory.of(device, rng, lengths, 1, 32, TYPES[dtype])
    queries = rng.standard_normal((sum(n for _, _, n in parts), 2, 32)).astype(TYPES[dtype])
    found = run(device, memory, TYPES[dtype], 2, queries, parts, window)
    close(found, expected(memory, queries, parts, window), 2 * EPS[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("window", [0, 50])
def test_same_bits_however_a_prompt_is_cut(device, dtype, window):
    rng = np.random.default_rng(3)
    memory = Memory.of(device, rng, [200, 64], 1, 64, TYPES[dtype])
    queries = rng.standard_normal((264, 2, 64)).astype(TYPES[dtype])
    together = run(device, memory, TYPES[dtype], 2, queries, [(0, 0, 200), (1, 0, 64)], window)
    for first, n in ((0, 64), (64, 136), (30, 100), (199, 1)):
        part = run(device, memory, TYPES[dtype], 2, queries[first : first + n], [(0, first, n)], window)
        np.testing.assert_array_equal(part, together[first : first + n])


RAGGED = [
    pytest.param([5], id="one"),
    pytest.param([16, 1, 17, 30], id="one-tile"),
    pytest.param([3, 70, 1, 64, 20, 128, 2, 2], id="across-tiles"),
    pytest.param([1] * 64, id="64-in-a-tile"),
]


@pytest.mark.parametrize("d", [32, 128])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("lengths", RAGGED)
def test_whole_sequences_without_gaps_have_the_bits_of_each_alone(device, dtype, lengths, d):
    rng = np.random.default_rng(6)
    memory = Memory.of(device, rng, lengths, 1, d, TYPES[dtype])
    queries = rng.standard_normal((sum(lengths), 2, d)).astype(TYPES[dtype])
    parts, at = [(i, 0, n) for i, n in enumerate(lengths)], 0
    together = run(device, memory, TYPES[dtype], 2, queries, parts, encoder=True)
    for i, n in list(enumerate(lengths))[:8]:
        own = queries[at : at + n]
        close(together[at : at + n], np.stack([memory.attend(q, i, n, 0) for q in own]), 3 * EPS[dtype])
        alone = run(device, memory, TYPES[dtype], 2, own, [(i, 0, n)], encoder=True)
        np.testing.assert_array_equal(together[at : at + n], alone)
        at += n


@pytest.mark.parametrize("encoder", [False, True])
def test_order_of_threads_does_not_matter(shuffled, encoder):
    rng = np.random.default_rng(4)
    memory = Memory.of(shuffled, rng, [130, 20], 1, 32, TYPES["bfloat16"])
    queries = rng.standard_normal((150, 1, 32)).astype(TYPES["bfloat16"])
    run(shuffled, memory, TYPES["bfloat16"], 1, queries, [(0, 0, 130), (1, 0, 20)], encoder=encoder)


def test_refuses_packed_heads_that_are_too_large(device):
    memory = Memory.of(device, np.random.default_rng(5), [64], 1, 192, TYPES["float32"])
    with pytest.raises(DeviceError, match=r"attend: expected packed heads of at most 128 elements, found 192"):
        run(device, memory, TYPES["float32"], 1, np.zeros((64, 1, 192), np.float32), [(0, 0, 64)], encoder=True)


def test_refuses_part_of_a_tile(device):
    memory = Memory.of(device, np.random.default_rng(5), [64], 1, 32, TYPES["float32"])
    f32 = np.dtype(np.float32)
    s = step(device, [0] * 40, range(40), range(1, 41), memory.table, PassKind.PREFILL)
    with pytest.raises(DeviceError, match=r"attend: expected a multiple of 64 rows in a prefill pass, found 40"):
        RowOps(device, f32).attend(
            device.empty((40, 96), f32), s, memory.cache, 1, 0, device.empty((40, 32), f32), None
        )
