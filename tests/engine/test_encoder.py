"""The Encoder: vectors against transformers, graphs against eager at every bucket, the same bits in any batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from configs import changed
from small import model

from ostinato.config import EngineConfig, ModelConfig
from ostinato.errors import RequestError
from ostinato.models.families import model_config
from ostinato.ops.base import Ops
from ostinato.ops.cuda import CudaOps
from ostinato.ops.device import Device
from ostinato.ops.numpy import NumpyOps
from ostinato.run.encoder import TEXT_ROWS, Encoder
from ostinato.run.load import weights
from ostinato.sizes import PAGE
from ostinato.tools.bench.synthetic import shape
from ostinato.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SMALL = changed(shape("minilm-l6"), layers=2, hidden=48, heads=3, kv_heads=3, head_dim=16, ffn=80, vocab=90,
                max_len=150)  # fmt: skip
LENGTHS = [5, 1, 64, 65, 150, 2, 17, 128, 3]


BACKENDS = {"numpy": lambda device, dtype: NumpyOps(), "kernels": CudaOps}


@pytest.fixture(params=BACKENDS)
def ops(request: pytest.FixtureRequest, device: Device) -> Ops:
    return BACKENDS[request.param](device, "bfloat16")


def encoder(ops: Ops, c: ModelConfig = SMALL, **options) -> Encoder:
    return Encoder(*model(c, ops), EngineConfig(**{"prefill_rows": 256, **options}))


def texts(lengths: list[int], seed: int = 3) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, SMALL.vocab, n).tolist() for n in lengths]


def vectors(on: Encoder, ids: list[list[int]], cls: bool = False) -> np.ndarray:
    """Run one pass over some texts; its memory is poisoned before."""
    on.device.write(on._current.out, np.full(on._current.out.shape, np.nan, np.float32))
    on.set_texts(ids, cls)
    on.launch()
    return on.vectors()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pooled_vectors_are_those_of_transformers(device: Device, backend: str) -> None:
    ops = BACKENDS[backend](device, "float32")
    known = np.load(FIXTURES / "bert" / "expected.npz")
    with open_checkpoint(FIXTURES / "bert") as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        on = Encoder(ops, c, weights(ops, ck, c), EngineConfig(prefill_rows=128))
    ids, hidden = ([known[f"{what}_{i}"] for i in range(4)] for what in ("prompt", "hidden"))
    np.testing.assert_allclose(on.embed([i.tolist() for i in ids]), [h.mean(0) for h in hidden], atol=2e-5)
    np.testing.assert_allclose(on.embed([i.tolist() for i in ids], cls=True), [h[0] for h in hidden], atol=2e-5)


@pytest.mark.parametrize("scope", ["layer", "step"])
def test_replay_equals_eager_bit_for_bit_at_every_bucket(ops: Ops, scope: str) -> None:
    eager, recorded = (encoder(ops, graph=graph) for graph in ("off", scope))
    assert recorded.buckets == ((64, 128, 256) if ops.tile == PAGE else tuple(range(32, 257, 32)))
    per_pass = {"layer": SMALL.layer_count + 2, "step": 1}[scope]
    assert (eager.captured.graphs, recorded.captured.graphs) == (0, len(recorded.buckets) * per_pass)
    used = set()
    most = 256 // max(TEXT_ROWS, ops.align)
    whole = [([n] if n <= 128 else [128, n - 128], False) for n in recorded.buckets]
    for lengths, cls in (
        *whole,
        ([3], True),
        ([60, 5], True),
        ([150, 2], True),
        ([30] * 4, False),
        ([2] * most, False),
    ):
        a, b = (vectors(on, texts(lengths), cls) for on in (eager, recorded))
        np.testing.assert_array_equal(a, b)
        assert np.isfinite(a).all() and len(a) == len(lengths)
        used.add(recorded._current.rows)
    assert used == set(recorded.buckets)


def test_a_text_has_the_same_bits_in_every_batch(ops: Ops) -> None:
    ids = texts(LENGTHS)
    on, large = encoder(ops), encoder(ops, prefill_rows=1024)
    together = on.embed(ids)  # in several passes
    assert len({v.tobytes() for v in together}) == len(ids)
    np.testing.assert_array_equal(large.embed(ids), together)
    np.testing.assert_array_equal(on.embed(ids[::-1]), together[::-1])
    for i, one in enumerate(ids):
        np.testing.assert_array_equal(on.embed([one]), together[i : i + 1])


def test_more_short_texts_than_slots_of_a_pass(ops: Ops) -> None:
    ids = texts([1 + i % 3 for i in range(40)])
    on = encoder(ops, prefill_rows=192)
    assert on._fits(ids, 0) == 192 // max(TEXT_ROWS, ops.align)
    found = on.embed(ids)
    for i in (0, 23, 24, 39):
        np.testing.assert_array_equal(on.embed(ids[i : i + 1]), found[i : i + 1])


def test_a_pass_holds_the_longest_text() -> None:
    on = encoder(NumpyOps(), prefill_rows=PAGE)
    assert on.buckets == (32, 64, 96, 128, 160, 192)
    (one,) = texts([150])
    np.testing.assert_array_equal(on.embed([one]), encoder(NumpyOps()).embed([one]))


def test_texts_of_the_pass_before_leave_nothing_behind(ops: Ops) -> None:
    on, ids = encoder(ops), texts([40, 12, 3])
    first = vectors(on, ids)
    vectors(on, texts([60, 60, 60, 60], seed=8))
    np.testing.assert_array_equal(vectors(on, ids), first)


def test_nothing_to_embed() -> None:
    assert encoder(NumpyOps()).embed([]).shape == (0, SMALL.hidden)


def test_max_len_beyond_the_model_is_refused() -> None:
    with pytest.raises(RequestError, match=r"max_len: expected at most 150.*found 151"):
        encoder(NumpyOps(), max_len=151)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_needle_in_random_batches_of_a_real_shape(device: Device, dtype: str) -> None:
    if device.stream is None:
        pytest.skip("for a GPU: the shape is a real one")
    c = shape("minilm-l6")
    on = encoder(CudaOps(device, dtype), c, prefill_rows=2048, graph="step")
    rng = np.random.default_rng(4)
    needle = rng.integers(0, c.vocab, 37).tolist()
    alone = on.embed([needle])[0]
    assert np.isfinite(alone).all()
    for _ in range(50):
        others = [rng.integers(0, c.vocab, rng.integers(1, 300)).tolist() for _ in range(rng.integers(1, 40))]
        at = rng.integers(0, len(others) + 1)
        np.testing.assert_array_equal(on.embed([*others[:at], needle, *others[at:]])[at], alone)
