"""SamplingParams and EngineConfig: accepted values, conversions, and rejected values by field."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from configs import flat

from ostinato.config import EngineConfig, SamplingParams
from ostinato.errors import RequestError
from ostinato.sizes import STOP_IDS

MODEL = flat(
    layers=1, hidden=8, heads=1, kv_heads=1, head_dim=8, ffn=8, vocab=100, max_len=64, eps=1e-5,
    eos_ids=(2, 3),
)  # fmt: skip
NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("field", "given", "kept"),
    [
        pytest.param("max_tokens", np.int64(3), 3, id="numpy-integer"),
        pytest.param("temperature", 1, 1.0, id="integer-as-float"),
        pytest.param("temperature", np.float32(0.5), 0.5, id="numpy-float"),
        pytest.param("temperature", 1e-9, 0.0, id="tiny-temperature-is-greedy"),
        pytest.param("temperature", 2, 2.0, id="hottest"),
        pytest.param("top_k", -1, 0, id="top-k-minus-one-is-off"),
        pytest.param("top_p", 1, 1.0, id="top-p-off"),
        pytest.param("min_p", 1, 1.0, id="min-p-highest"),
        pytest.param("presence_penalty", -2, -2.0, id="presence-lowest"),
        pytest.param("seed", 2**64 - 1, 2**64 - 1, id="largest-seed"),
        pytest.param("stop", "end", ("end",), id="stop-text"),
        pytest.param("stop", ["a", "b", "a"], ("a", "b"), id="stop-list-once-each"),
        pytest.param("stop", None, (), id="stop-none"),
        pytest.param("stop_token_ids", [5, 5, 6], (5, 6), id="stop-ids-once-each"),
        pytest.param("stop_token_ids", None, (), id="stop-ids-none"),
        pytest.param("logprobs", 0, 0, id="logprob-of-the-token-alone"),
        pytest.param("logprobs", 20, 20, id="most-logprobs"),
    ],
)
def test_kept(field: str, given: Any, kept: Any) -> None:
    value = getattr(SamplingParams(**{field: given}), field)
    assert value == kept and type(value) is type(kept)


NUMBERS = {
    "max_tokens": [0, -1, 2.0, 2**31],
    "temperature": [-0.1, 2.1, NAN, INF],
    "top_p": [0, -0.1, 1.1, NAN, INF],
    "top_k": [-2, 1.5, 2**31],
    "min_p": [-0.1, 1.1, NAN],
    "repetition_penalty": [0, -1, NAN, INF, 1e30],
    "presence_penalty": [-2.1, 2.1, NAN, -INF],
    "frequency_penalty": [-2.1, 2.1, NAN, 10**400],
    "seed": [-1, 0.5, 2**64],
    "min_tokens": [-1, 1.0],
    "logprobs": [-1, 21, 1.0],
    "n": [0, -1, 2.0, 10**9],
}
EVERY = [True, False, np.True_, "1", [1], 1j]  # never a number


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}-{str(value)[:12]}")
        for field, values in NUMBERS.items()
        for value in values + EVERY
    ],
)
def test_number_refused(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"^{field}: expected an? .*, found ") as e:
        SamplingParams(**{field: value})
    assert "\n" not in str(e.value) and len(str(e.value)) < 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"stop": ""}, r"stop\[0\]: expected a string that is not empty", id="empty-stop"),
        pytest.param({"stop": ["a", ""]}, r"stop\[1\]: ", id="empty-stop-in-list"),
        pytest.param({"stop": ["a", 3]}, r"stop\[1\]: ", id="stop-not-text"),
        pytest.param({"stop": 3}, r"stop: expected a string or a list", id="stop-number"),
        pytest.param({"stop_token_ids": 3}, r"stop_token_ids: expected a list", id="stop-ids-number"),
        pytest.param({"stop_token_ids": [1, -1]}, r"stop_token_ids\[1\]: ", id="stop-id-negative"),
        pytest.param({"stop_token_ids": [True]}, r"stop_token_ids\[0\]: ", id="stop-id-boolean"),
        pytest.param({"ignore_eos": 1}, r"ignore_eos: expected True or False", id="ignore-eos-number"),
        pytest.param({"max_tokens": 2, "min_tokens": 3}, r"min_tokens: expected at most max_tokens", id="min-over-max"),
        pytest.param({"temperature": None}, r"temperature: ", id="temperature-none"),
        pytest.param({"stop": list(range(1000))}, r"stop\[0\]: .* found 0$", id="long-list"),
        pytest.param({"stop": {1: "x" * 1000}}, r"stop: .{0,150}$", id="long-value"),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=rf"^{message}"):
        SamplingParams(**fields)


def test_defaults_are_greedy_and_off() -> None:
    p = SamplingParams()
    assert (p.temperature, p.max_tokens, p.seed, p.n) == (0.0, None, None, 1)
    assert p == SamplingParams() and hash(p) == hash(SamplingParams())


@pytest.mark.parametrize(
    ("fields", "ids"),
    [
        pytest.param({}, (2, 3), id="the-model's"),
        pytest.param({"stop_token_ids": [9, 3]}, (9, 3, 2), id="together-once-each"),
        pytest.param({"ignore_eos": True}, (), id="ignored"),
        pytest.param({"ignore_eos": True, "stop_token_ids": [3]}, (3,), id="ignored-but-asked-for"),
        pytest.param({"stop_token_ids": [*range(10, 30)]}, (*range(10, 30), 2, 3), id="20-beside-the-model's"),
        pytest.param({"stop_token_ids": [*range(10, 40)]}, (*range(10, 40), 2, 3), id="as-many-as-fit"),
    ],
)
def test_stop_ids(fields: dict[str, Any], ids: tuple[int, ...]) -> None:
    assert SamplingParams(**fields).stop_ids(MODEL) == ids


def test_too_many_stop_ids() -> None:
    own = [*range(10, 10 + STOP_IDS - 1)]
    with pytest.raises(RequestError, match=rf"stop_token_ids: expected at most {STOP_IDS} .*\[2, 3\].* found 33"):
        SamplingParams(stop_token_ids=own).stop_ids(MODEL)
    assert SamplingParams(stop_token_ids=own, ignore_eos=True).stop_ids(MODEL) == tuple(own)


def test_stop_id_outside_vocabulary() -> None:
    with pytest.raises(RequestError, match=r"stop_token_ids\[1\]: expected an integer in \[0, 99\], found 100"):
        SamplingParams(stop_token_ids=[5, 100]).stop_ids(MODEL)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("backend", "tpu", id="backend-unknown"),
        pytest.param("backend", None, id="backend-none"),
        pytest.param("graph", "full", id="graph-unknown"),
        pytest.param("graph", True, id="graph-boolean"),
        pytest.param("dtype", "int8", id="dtype-unknown"),
        pytest.param("max_batch", 0, id="batch-zero"),
        pytest.param("max_batch", 257, id="batch-huge"),
        pytest.param("max_batch", True, id="batch-boolean"),
        pytest.param("max_len", 0, id="len-zero"),
        pytest.param("max_len", NAN, id="len-nan"),
        pytest.param("cache_tokens", -1, id="cache-negative"),
        pytest.param("cache_tokens", 1.5, id="cache-fraction"),
        pytest.param("prefill_rows", 100, id="rows-not-multiple"),
        pytest.param("prefill_rows", 0, id="rows-zero"),
        pytest.param("seed", -1, id="seed-negative"),
    ],
)
def test_engine_refuses(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"^{field}: expected .*, found "):
        EngineConfig(**{field: value})


def test_engine_accepts() -> None:
    e = EngineConfig(backend="numpy", graph="off", dtype="float32", max_batch=1, max_len=100, cache_tokens=64)
    assert (e.backend, e.prefill_rows, e.seed) == ("numpy", 2048, None)
