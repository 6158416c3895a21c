"""Prompts and texts on NumPy: the same bits for every chunking and batch, and no wasted work."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from configs import changed
from small import LLAMA, MODELS, complete, events, model, sequence

from ostinato.config import EngineConfig
from ostinato.ops import attention, blas
from ostinato.ops.base import Cache, PassKind, Step
from ostinato.ops.numpy import NumpyOps
from ostinato.ops.threads import Team
from ostinato.run.encoder import Encoder
from ostinato.run.runner import Runner
from ostinato.sizes import PAGE
from ostinato.tools.bench.synthetic import shape

ONE = Team(1)
NEEDLE, TOKENS = [7 * i % 131 for i in range(150)], 3
ENCODER = changed(shape("minilm-l6"), layers=2, hidden=192, heads=3, kv_heads=3, head_dim=64, ffn=320, vocab=90,
                  max_len=150)  # fmt: skip


class Counting(NumpyOps):
    """Records the number of rows of every product, including padding."""

    def __init__(self, threads: int = 1) -> None:
        super().__init__()
        self.use(Team(threads))
        self.rows = 0

    def linear(self, x, weight, out, kind, bias=None, residual=None, scale=1.0):
        if kind.tiled:
            self.rows += sum(size for _, size in blas.tiles_of(len(x), blas.tiling(*weight.shape).sizes))
        super().linear(x, weight, out, kind, bias, residual, scale)


def needle_logits(name: str, others: list[list[int]], threads: int, **options: int) -> np.ndarray:
    """Logits [TOKENS, V] of the needle, generated together with others."""
    ops, c, w = model(MODELS[name], Counting(threads))
    on = Runner(ops, c, w, EngineConfig(**{"max_batch": 4, "cache_tokens": 4096, "graph": "off", **options}))
    batch = [sequence(prompt, TOKENS, logprobs=0) for prompt in (*others, NEEDLE)]
    return np.stack([np.array(e.logits) for e in events(on, batch) if e.seq is batch[-1]])


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_a_prompt_has_the_same_bits_in_any_batch_and_any_chunking(name: str) -> None:
    alone = needle_logits(name, [], 1)
    for others, threads, rows in (
        ([], 2, 64), ([[5] * 3], 1, 512), ([[9] * 70, [4], [8] * 33], 2, 512), ([[1] * 100], 2, 128),
    ):  # fmt: skip
        np.testing.assert_array_equal(needle_logits(name, others, threads, prefill_rows=rows), alone)


def encoder(threads: int = 1, **options: int) -> Encoder:
    return Encoder(*model(ENCODER, Counting(threads)), EngineConfig(**{"prefill_rows": 512, "graph": "off", **options}))


def test_a_text_has_the_same_bits_in_any_batch_on_any_threads() -> None:
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 90, n).tolist() for n in (1, 5, 64, 65, 150, 33, 2, 17)]
    alone = np.concatenate([encoder().embed([ids]) for ids in texts])
    for threads, order in ((1, range(8)), (2, range(7, -1, -1)), (2, (3, 0, 6, 4, 1, 7, 2, 5))):
        np.testing.assert_array_equal(encoder(threads).embed([texts[i] for i in order]), alone[list(order)])


def test_short_texts_are_not_padded_to_a_page_each() -> None:
    """32 texts of 10 tokens need at most 12 times the rows of one text, an eighth of whole pages."""
    on, rows = encoder(), []
    ops = on.ops
    assert isinstance(ops, Counting)
    for count in (1, 32):
        ops.rows = 0
        on.embed([[3] * 10] * count)
        rows.append(ops.rows // (4 * ENCODER.layer_count))
    assert rows[0] == 32
    assert rows[1] <= (384 if ops.align == 1 else 32 * 32)


def test_a_short_prompt_is_not_padded_to_a_page() -> None:
    ops, c, w = model(LLAMA, Counting())
    on = Runner(ops, c, w, EngineConfig(max_batch=1, cache_tokens=512, graph="off"))
    complete(on, [sequence([1, 2, 3], 1)])
    assert isinstance(ops, Counting) and ops.rows == 4 * c.layer_count * 32


def attend(
    tokens: int, heads: int, groups: int, window: int = 0, d: int = 16, team: Team = ONE
) -> tuple[np.ndarray, np.ndarray]:
    """(attention of a whole prompt, naive attention of its last row)."""
    rng, pages = np.random.default_rng(0), -(-tokens // PAGE)
    cache = Cache(*(rng.standard_normal((pages + 1, groups, PAGE, d), np.float32) for _ in "kv"))
    table = np.array([np.arange(pages, 0, -1), [0] * pages], np.int32)
    where = np.arange(tokens, dtype=np.int32)
    s = Step(where, np.zeros_like(where), where, where + 1, table, where[:0], PassKind.PREFILL)
    qkv = rng.standard_normal((tokens, (heads + 2 * groups) * d), np.float32)
    out = np.full((tokens, heads * d), np.nan, np.float32)
    attention.prefill(team, qkv, s, cache, heads, window, np.float32(d**-0.5), out)
    k, v = (
        a[table[0]].transpose(1, 0, 2, 3).reshape(groups, -1, d)[:, :tokens].astype(float) for a in (cache.k, cache.v)
    )
    last, first = [], max(0, tokens - window) if window else 0
    for h, q in enumerate(qkv[-1].reshape(-1, d)[:heads].astype(float)):
        score = np.exp(k[h // (heads // groups), first:] @ q / np.sqrt(d))
        last.append(score @ v[h // (heads // groups), first:] / score.sum())
    return out, np.concatenate(last)


@pytest.mark.parametrize("window", [0, 9, 700])
@pytest.mark.parametrize("tokens", [1, 512, 513, 1300])
def test_attention_over_several_blocks_of_keys(tokens: int, window: int) -> None:
    out, last = attend(tokens, 6, 2, window)
    np.testing.assert_array_equal(attend(tokens, 6, 2, window, team=Team(2))[0], out)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[-1], last, rtol=1e-4, atol=1e-5)


def test_scores_take_no_more_memory_in_a_longer_prompt() -> None:
    """Scores of all tokens of a tile would take 24 MB more than the copy of keys and values."""
    peaks = []
    for tokens in (1024, 4096):
        tracemalloc.start()
        attend(tokens, 4, 1, d=4)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2 << 20


@pytest.mark.parametrize("window", [0, 256])
def test_hidden_blocks_of_keys_are_skipped(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    usual, scores = np.matmul, 0

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nonlocal scores
        scores += 0 if a.shape[-1] == b.shape[-1] or b.shape[-2] != 16 else a.shape[-2] * b.shape[-1]
        return usual(a, b)

    monkeypatch.setattr(attention.np, "matmul", matmul)
    monkeypatch.setattr(
        Team, "run", lambda self, n, compute, commit: [commit(i, compute(i)) for i in range(n)] and None
    )
    attend(2048, 1, 1, window)
    seen = 2048 * 2048 // 2 if not window else 2048 * window
    assert scores <= 1.5 * seen
