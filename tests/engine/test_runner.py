"""The whole forward pass against transformers, prefill against decode, and all buckets against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import LLAMA, MODELS, complete, logits, model, prompts, runner, sequence

from ostinato.config import EngineConfig
from ostinato.errors import CacheFull, DeviceError, RequestError
from ostinato.models.families import model_config
from ostinato.ops.numpy import NumpyOps
from ostinato.run.load import choose, weights
from ostinato.run.runner import Runner
from ostinato.sizes import PAGE
from ostinato.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
CHECKPOINTS = sorted(p.parent.name for p in FIXTURES.glob("*/generation_config.json"))


def load(name: str, **options) -> Runner:
    with open_checkpoint(FIXTURES / name) as ck:
        c = model_config(ck.config, ck.generation_config, ck.source)
        ops = NumpyOps()
        return Runner(ops, c, weights(ops, ck, c), EngineConfig(**{"max_batch": 3, **options}))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> tuple[Runner, dict[str, np.ndarray]]:
    """(a runner with three slots, the prompts of a fixture with the expected results of transformers)."""
    return load(request.param), dict(np.load(FIXTURES / request.param / "expected.npz"))


def test_there_are_fixtures() -> None:
    assert len(CHECKPOINTS) >= 7


@pytest.mark.parametrize("decode_from", [None, 1, -2])
def test_logits_are_those_of_transformers(checkpoint, decode_from: int | None) -> None:
    on, expected = checkpoint
    for i in range(4):
        ids = expected[f"prompt_{i}"].tolist()
        known = None if decode_from is None else max(1, decode_from % len(ids))
        got = logits(on, ids, known)
        assert got.shape == (len(ids), on.c.vocab)
        np.testing.assert_allclose(got[expected[f"rows_{i}"]], expected[f"logits_{i}"], atol=1e-3)
    assert on.table.free == on.table.pages - 1


def test_greedy_tokens_of_a_ragged_batch_are_those_of_transformers(checkpoint) -> None:
    on, expected = checkpoint
    sequences = [sequence(expected[f"prompt_{i}"].tolist(), 6) for i in range(4)]
    assert complete(on, sequences) == [expected[f"greedy_{i}"].tolist() for i in range(4)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, 200])
def test_decode_continues_what_prefill_began(name: str, length: int) -> None:
    on = runner(MODELS[name])
    ids = np.random.default_rng(length).integers(0, LLAMA.vocab, length + 4).tolist()
    np.testing.assert_allclose(logits(on, ids, length)[length:], logits(on, ids)[length:], atol=1e-4)


@pytest.mark.parametrize("rows", [64, 128, 192])
def test_logits_do_not_depend_on_how_a_prompt_is_cut(rows: int) -> None:
    ids = np.random.default_rng(2).integers(0, LLAMA.vocab, 333).tolist()
    whole, cut = logits(runner(), ids), logits(runner(prefill_rows=rows), ids)
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [64, 128, 2048])
def test_a_prompt_does_not_depend_on_the_batch(rows: int) -> None:
    """Alone in one pass, and with others in chunks: the same bits, and so the same tokens, also when sampled."""
    wanted = [sequence(p, 10, seed=7 + i, temperature=1.5) for i, p in enumerate(prompts(9, longest=200))]
    together = complete(runner(prefill_rows=rows), wanted)
    alone = [complete(runner(), [sequence(s.prompt, 10, seed=s.seed, temperature=1.5)])[0] for s in wanted]
    assert together == alone


def test_every_bucket_gives_the_same_bits() -> None:
    """One row alone, and as the first row of every batch size."""
    on = runner(max_batch=16, max_len=128)
    first = complete(on, [sequence([5, 6, 7], 20, temperature=1.0)])
    for others in (1, 2, 3, 7, 12, 15):
        batch = [sequence([5, 6, 7], 20, temperature=1.0), *(sequence([9, i], 20, seed=i) for i in range(others))]
        assert complete(on, batch)[0] == first[0]


def test_a_batch_above_sixteen_runs_in_groups() -> None:
    on = runner(max_batch=20, max_len=128)
    assert on.buckets == (1, 2, 4, 8, 16, 20)
    sequences = [sequence([3, i], 12, seed=i, temperature=0.7) for i in range(23)]
    expected = [complete(runner(), [sequence(s.prompt, 12, seed=s.seed, temperature=0.7)])[0] for s in sequences]
    assert complete(on, sequences) == expected


CACHE = [  # options, pages
    pytest.param({"cache_tokens": 65}, 2, id="cache_tokens, rounded up"),
    pytest.param({"max_batch": 2, "max_len": 100}, 4, id="what every sequence may need"),
]


@pytest.mark.parametrize(("options", "pages"), CACHE)
def test_size_of_the_cache(options: dict, pages: int) -> None:
    on = runner(**{"cache_tokens": None, **options})
    assert on.table.pages == 1 + pages and on.caches[0].k.shape == (1 + pages, 2, PAGE, 16)


def test_a_cache_that_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.ops.device.HostDevice.free_memory", lambda self: 1 << 20)
    assert 1 < runner(max_len=512, max_batch=16, cache_tokens=None).table.pages < 40  # takes what is there
    with pytest.raises(DeviceError, match=r"KV cache: expected .* MB free on CPU, found 1.0 MB; change cache_tokens"):
        runner(cache_tokens=1 << 20)


@pytest.mark.parametrize(
    ("ids", "decode_from", "error"),
    [
        pytest.param([], None, RequestError, id="empty"),
        pytest.param([1] * 513, None, RequestError, id="too long"),
        pytest.param([1, 2], 3, RequestError, id="decode_from beyond"),
        pytest.param([1, 2], 0, RequestError, id="decode_from 0"),
        pytest.param([1] * 300, None, CacheFull, id="larger than the cache"),
    ],
)
def test_logits_refuses(ids: list[int], decode_from: int | None, error: type[Exception]) -> None:
    on = runner(cache_tokens=256)
    with pytest.raises(error):
        logits(on, ids, decode_from)
    assert on.table.free == on.table.pages - 1


def test_max_len_beyond_the_model_is_refused() -> None:
    with pytest.raises(RequestError, match=r"max_len: expected at most 512.*found 513"):
        runner(max_len=513)


def test_tables_of_angles_that_are_too_short_are_refused() -> None:
    ops, c, w = model(max_len=100)
    with pytest.raises(RequestError, match=r"max_len: expected at most 100, which weights were loaded for, found 101"):
        Runner(ops, c, w, EngineConfig(max_batch=1, max_len=101))


def test_a_banned_id_is_never_sampled_but_evaluated() -> None:
    ops, c, w = model(replace(LLAMA, vocab=20), banned=tuple(range(3, 20)))
    on = Runner(ops, c, w, EngineConfig(max_batch=2, cache_tokens=512))
    tokens = complete(on, [sequence([1], 60, seed=i, temperature=2.0) for i in range(2)])
    assert {t for row in tokens for t in row} == {0, 1, 2}
    assert np.abs(logits(on, [1, 2])).max() < 1e3


@pytest.mark.parametrize(
    ("dtype", "about"), [("auto", "float32"), ("float32", "float32"), ("bfloat16", "weights rounded to bfloat16")]
)
def test_numpy_is_chosen_by_name(dtype: str, about: str) -> None:
    ops, why = choose("numpy", dtype, "bfloat16")
    assert ops.name == "numpy" and ops.dtype == np.float32 and why.endswith(about)


@pytest.mark.parametrize("backend", ["cuda", "cublas"])
def test_a_backend_asked_for_by_name_is_not_replaced(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(self) -> None:
        raise DeviceError("backend cuda needs an NVIDIA GPU")

    monkeypatch.setattr("ostinato.ops.gpu.CupyDevice.__init__", none)
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        choose(backend, "auto", "bfloat16")
    ops, why = choose("auto", "auto", "bfloat16")
    assert ops.name == "numpy" and "chosen because backend cuda needs an NVIDIA GPU" in why
