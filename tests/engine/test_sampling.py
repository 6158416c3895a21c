"""The reference implementation of sampling: against float64 and plain loops, and a chi-square test."""

from __future__ import annotations

import numpy as np
import pytest
from sampling_rules import records, rules

from ostinato.ops import sampling
from ostinato.ops.base import PassKind, Step

F32, I32 = np.float32, np.int32


def test_philox_known_answers():
    """The vectors published with Random123 whose upper counter words are 0."""
    assert sampling.philox(0, 0) == 0xE169C58D6627E8D5


def test_weights_are_the_exponential():
    x = np.linspace(-27, 0, 100_001).astype(F32)
    w = sampling.weights(x, 1.0)
    exact = np.exp(x.astype(float)) * sampling.ONE
    assert w[-1] == sampling.ONE
    assert np.abs(w.astype(float) - exact).max() <= 2e-6 * sampling.ONE
    assert (np.abs(w.astype(float) - exact) <= 2e-6 * exact + 1).all()
    assert (np.diff(w.astype(np.int64)) >= 0).all()
    assert (sampling.weights(np.array([-np.inf, 0, -1e30], F32), 1.0) == [0, sampling.ONE, 0]).all()


def expected(x, top_k, top_p, min_p):
    """Probabilities of the kept tokens in float64, including ties."""
    p = np.exp(x.astype(float) - x.max())
    kept = np.ones(len(x), bool)
    if top_k:
        kept &= x >= sorted(x)[-top_k]
    if top_p < 1:
        q, total = np.where(kept, p, 0), 0.0
        for i in sorted(range(len(x)), key=lambda i: -x[i]):
            total += q[i]
            if total >= top_p * q.sum():
                kept &= x >= x[i]
                break
    kept &= p >= min_p
    return np.where(kept, p, 0) / p[kept].sum()


CUTS = [
    pytest.param(0, 1.0, 0.0, id="all"),
    pytest.param(1, 1.0, 0.0, id="top-1"),
    pytest.param(7, 1.0, 0.0, id="top-7"),
    pytest.param(0, 0.8, 0.0, id="top-p"),
    pytest.param(0, 0.01, 0.0, id="top-p-tiny"),
    pytest.param(0, 1.0, 0.1, id="min-p"),
    pytest.param(12, 0.9, 0.05, id="all-three"),
    pytest.param(99, 0.999, 0.0, id="top-k-above-vocabulary"),
]


@pytest.mark.slow
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
def test_distribution(top_k, top_p, min_p, ties):
    """Frequencies of tokens over many counters match the probabilities, at the 0.1 % level."""
    x = (np.random.default_rng(3).standard_normal(40) * 2).astype(F32)
    if ties:
        x = np.round(x)
    w = sampling.weights(x, 1.0)
    kept, p = sampling.keep(x, w, top_k, top_p, min_p), expected(x, min(top_k, 40), top_p, min_p)
    np.testing.assert_array_equal(kept, p > 0)
    n = 100_000 if not ties and top_k in (0, 12) and top_p > 0.85 else 5_000
    found = np.bincount([sampling.draw(w, kept, sampling.philox(5, i)) for i in range(n)], minlength=40)
    assert found[~kept].sum() == 0
    chi = ((found - n * p)[kept] ** 2 / (n * p)[kept]).sum()
    k = kept.sum() - 1
    assert chi <= k + 3.1 * np.sqrt(2 * k) + 10  # mean k, variance 2 k, and a tail for small k


def test_temperature_sharpens():
    x = np.array([0, 1, 2], F32)
    for t in (0.25, 0.7, 1.5):
        w = sampling.weights(x, t).astype(float)
        np.testing.assert_allclose(w / w.sum(), np.exp(x / t) / np.exp(x / t).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        pytest.param([1, 3, 2], 1, id="largest"),
        pytest.param([1, 3, 3], 1, id="first-of-equals"),
        pytest.param([-0.0, 0.0, -1], 0, id="zeros-are-equal"),
        pytest.param([-np.inf, -5, -np.inf], 1, id="banned-by-the-model"),
        pytest.param([1, np.nan, 2], -1, id="nan"),
        pytest.param([1, np.inf, 2], -1, id="infinite"),
        pytest.param([-np.inf, -np.inf, -np.inf], -1, id="nothing-left"),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1e-40, 1e-6])
def test_greedy(logits, token, temperature):
    g = rules(1, 3, temperature=temperature, top_k=1 if temperature > 1e-30 and token >= 0 else 0)
    found = sampling.sample_row(np.array(logits, F32), g.counts[0], records(g)[0], 4)
    assert found == token or (temperature > 1e-30 and token >= 0 and logits[found] == logits[token])


def test_penalties():
    g = rules(1, 6, repetition_penalty=2, presence_penalty=0.5, frequency_penalty=0.25)
    g.counts[0] = [0, 1, 2, 5, 1, 2]  # none, prompt, once, twice and prompt, prompt, once
    x = np.array([4, 4, 4, 4, -4, -4], F32)
    found = sampling.adjust(x, g.counts[0], records(g)[0], 4)
    np.testing.assert_array_equal(found, [4, 2, 2 - 0.75, 2 - 1, -8, -8 - 0.75])


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_one_penalty_is_enough_for_counts(name):
    assert not sampling.penalised(sampling.off(1)[0])
    assert sampling.penalised(records(rules(1, 6, **{name: 0.5}))[0])


def test_counts_follow_and_stop_tokens_wait():
    g = rules(2, 4, frequency_penalty=[1, 0], stop_from=12)  # the second sequence has no penalty: its counts stay
    records(g)["stop_ids"][:, 0] = 3
    logits = np.tile(np.array([0, 1.5, 1, 9], F32), (2, 1))
    s = Step(
        *(np.array(v, I32) for v in ([0, 0], [1, 0], [10, 10], [11, 11], [[0], [0], [0]], [1, 0])), kind=PassKind.DECODE
    )
    tokens = []
    for _ in range(3):
        out = np.zeros(2, I32)
        sampling.sample(logits, s, g, out)
        tokens.append(out.tolist())
        s.positions[:] += 1
    assert tokens == [[1, 1], [3, 3], [3, 3]]  # position 11 is before stop_from, 12 is not
    np.testing.assert_array_equal(g.counts, [[0, 2, 0, 4], [0, 0, 0, 0]])


def test_a_seed_gives_the_same_tokens_in_any_row():
    x = np.random.default_rng(1).standard_normal((3, 50)).astype(F32)
    g = rules(3, 50, temperature=1, seed=[1, 2, 2**63 + 5])
    alone = [sampling.sample_row(x[i], g.counts[i], records(g)[i], 100) for i in range(3)]
    s = Step(
        *(np.array(v, I32) for v in ([0] * 3, [2, 0, 1], [99] * 3, [100] * 3, [[0]] * 4, [2, 0, 1])),
        kind=PassKind.DECODE,
    )
    out = np.zeros(3, I32)
    sampling.sample(x[[1, 2, 0]], s, g, out)  # row i of logits is of row last[i]: sequences 1, 2, 0
    assert out.tolist() == [alone[1], alone[2], alone[0]]
    draws = {sampling.sample_row(x[0], g.counts[0], records(g)[0], p) for p in range(60)}
    assert len(draws) > 10
