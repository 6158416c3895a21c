"""The rotary table against the formulas, written out angle by angle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ostinato import rope
from ostinato.config import Rope, RopeScaling
from ostinato.errors import UnsupportedModel

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
