"""RoPE tables against the formulas, angle by angle."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from configs import changed
from small import LLAMA, model

from ostinato.config import Rope, RopeScaling
from ostinato.errors import UnsupportedModel
from ostinato.models import rope

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)


def frequency(i: int, d: int, theta: float, scaling: RopeScaling | None) -> float:
    f = theta ** (-2 * i / d)
    if scaling is None:
        return f
    if scaling.kind == "linear":
        return f / scaling.factor
    wave, long = 2 * math.pi / f, scaling.original_max_len
    if wave > long / scaling.low_freq_factor:
        return f / scaling.factor
    if wave < long / scaling.high_freq_factor:
        return f
    share = (long / wave - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - share) * f / scaling.factor + share * f


@pytest.mark.parametrize("d", [2, 16, 64])
@pytest.mark.parametrize(
    "scaling",
    [
        pytest.param(None, id="plain"),
        pytest.param(RopeScaling("linear", 4.0), id="linear"),
        pytest.param(LLAMA3, id="llama3"),
    ],
)
def test_table_is_cosines_then_sines(d: int, scaling: RopeScaling | None) -> None:
    got = rope.table(Rope(500.0, scaling), d, 200)
    assert got.shape == (200, d) and got.dtype == np.float32
    for t in (0, 1, 63, 199):
        angles = [t * frequency(i, d, 500.0, scaling) for i in range(d // 2)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        np.testing.assert_allclose(got[t], expected, atol=1e-7)


def test_llama3_case_has_all_three_kinds_of_frequency() -> None:
    ratio = rope.frequencies(Rope(500.0, LLAMA3), 16, 512) / rope.frequencies(Rope(500.0), 16, 512)
    assert ratio.max() == 1 and ratio.min() == pytest.approx(1 / 8) and ((ratio > 0.13) & (ratio < 0.99)).any()


def test_unknown_scaling_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="rope_scaling: expected linear, llama3, yarn, longrope, found ntk"):
        rope.table(Rope(scaling=RopeScaling("ntk", 2.0)), 16, 8)


YARN = RopeScaling("yarn", 4.0, original_max_len=64, beta_fast=8.0, beta_slow=1.0, attention_factor=1.3)


def yarn(i: int, d: int, theta: float, s: RopeScaling) -> float:
    """A YaRN frequency from the published formula, by its number of turns within the training length."""
    bounds = [d * math.log(s.original_max_len / (2 * math.pi * n)) / (2 * math.log(theta)) for n in (s.beta_fast, 1.0)]
    low, high = (math.floor(bounds[0]), math.ceil(bounds[1])) if s.truncate else bounds
    low, high = max(low, 0), min(high, d - 1)
    share = min(max((i - low) / (high - low), 0), 1)
    return theta ** (-2 * i / d) * ((1 - share) + share / s.factor)


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn(truncate: bool) -> None:
    scaling = replace(YARN, truncate=truncate)
    got = rope.table(Rope(500.0, scaling), 32, 100)
    for t in (0, 1, 99):
        angles = [t * yarn(i, 32, 500.0, scaling) for i in range(16)]
        expected = [1.3 * math.cos(a) for a in angles] + [1.3 * math.sin(a) for a in angles]
        np.testing.assert_allclose(got[t], expected, atol=1e-6)
    ratio = rope.frequencies(Rope(500.0, scaling), 32, 100) / rope.frequencies(Rope(500.0), 32, 100)
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 4) and ((ratio > 0.3) & (ratio < 0.9)).any()


@pytest.mark.parametrize(("max_len", "divisors"), [(64, (1.0, 2.0)), (65, (3.0, 5.0))])
def test_longrope_chooses_by_the_longest_sequence(max_len: int, divisors: tuple[float, ...]) -> None:
    scaling = RopeScaling("longrope", original_max_len=64, short=(1.0, 2.0), long=(3.0, 5.0), attention_factor=1.1)
    plain = rope.frequencies(Rope(100.0), 4, max_len)
    np.testing.assert_allclose(rope.frequencies(Rope(100.0, scaling), 4, max_len), plain / divisors)
    assert rope.table(Rope(100.0, scaling), 4, max_len)[0].tolist() == pytest.approx([1.1, 1.1, 0, 0])


@pytest.mark.parametrize(("max_len", "named"), [(64, False), (65, True)])
def test_long_factors_are_named(caplog: pytest.LogCaptureFixture, max_len: int, named: bool) -> None:
    factors = RopeScaling("longrope", original_max_len=64, short=(1.0,) * 8, long=(2.0,) * 8)
    model(changed(LLAMA, rope=Rope(scaling=factors)), max_len=max_len)
    what = "longrope: the long factors, as sequences may have 65 tokens; max_len=64 takes the short ones"
    assert caplog.messages == ([what] if named else [])


def test_without_rope_nothing_turns() -> None:
    assert rope.table(None, 6, 2).tolist() == [[1, 1, 1, 0, 0, 0]] * 2
    assert rope.order(None, 6) is None and rope.order(Rope(), 6) is None


def turned(head: np.ndarray, t: int, r: Rope) -> np.ndarray:
    """Rotate one head in the checkpoint's order, pair by pair."""
    out, rotary = head.copy(), r.rotary or len(head)
    for i in range(rotary // 2):
        a, b = (2 * i, 2 * i + 1) if r.interleaved else (i, i + rotary // 2)
        angle = t * r.theta ** (-2 * i / rotary)
        out[a] = head[a] * math.cos(angle) - head[b] * math.sin(angle)
        out[b] = head[b] * math.cos(angle) + head[a] * math.sin(angle)
    return out


@pytest.mark.parametrize("rotary", [0, 4, 12, 14, 16])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_scores_are_the_same_in_the_order_of_the_kernels(rotary: int, interleaved: bool) -> None:
    r, d, rng = Rope(100.0, rotary=rotary, interleaved=interleaved), 16, np.random.default_rng(0)
    rows, angles = rope.order(r, d), rope.table(r, d, 8)
    assert (rows is None) == (not interleaved and rotary in (0, 16))
    assert rows is None or sorted(rows) == list(range(d))

    def by_kernel(head: np.ndarray, t: int) -> np.ndarray:
        x, cosines, sines = head if rows is None else head[rows], angles[t, : d // 2], angles[t, d // 2 :]
        a, b = x[: d // 2], x[d // 2 :]
        return np.concatenate([a * cosines - b * sines, b * cosines + a * sines])

    q, k = rng.standard_normal((2, d))
    for t, u in ((0, 0), (5, 2), (7, 7)):
        assert by_kernel(q, t) @ by_kernel(k, u) == pytest.approx(turned(q, t, r) @ turned(k, u, r), abs=1e-5)
