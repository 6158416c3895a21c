"""The sampling kernel picks exactly the tokens that engine/ops/sampling.py defines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rows import F32, I32, RowOps, scratch, step
from sampling_rules import records, rules

from ostinato.errors import DeviceError
from ostinato.ops import sampling
from ostinato.ops.base import Sampling
from ostinato.sizes import STOP_IDS


def run(device, logits: np.ndarray, g: Sampling, positions: list[int]) -> np.ndarray:
    """Tokens of the kernel, after comparing them and the counts with the definition's. Row i is sequence i, last[i] is
    the other way round."""
    n = len(logits)
    s = step(device, range(n), positions, np.array(positions) + 1, np.zeros((n + 1, 1)))
    s.last = device.upload(np.arange(n)[::-1].astype(I32))
    on_device = Sampling(*(device.upload(np.concatenate([array, array[:1]])) for array in (g.rules, g.counts)))
    host = replace(s, **{name: device.read(array) for name, array in vars(s).items() if name != "kind"})
    expected, out = np.zeros(n, I32), device.upload(np.full(n, -7, I32))
    sampling.sample(logits[::-1], host, g, expected)
    work = scratch(device, n, 1, 1, 16, F32, 1)
    RowOps(device, F32).sample(device.upload(logits[::-1]), s, on_device, out, work)
    np.testing.assert_array_equal(device.read(out), expected)
    np.testing.assert_array_equal(device.read(on_device.counts)[:n], g.counts)
    assert not device.read(work.best).any() and not device.read(work.scanned).any()
    return expected[::-1]


def normal(seed: int, *shape: int, scale: float = 3.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(F32)


@pytest.mark.parametrize("vocab", [1, 31, 1000, 1025, 9001, 49152])
def test_greedy(device, vocab):
    logits = normal(1, 3, vocab)
    tokens = run(device, logits, rules(3, vocab), [3, 4, 5])
    np.testing.assert_array_equal(tokens, logits.argmax(1))


def test_greedy_ties_and_what_is_no_number(device):
    logits = np.full((7, 2100), -1.0, F32)
    logits[0, [2000, 700, 1500]] = 5
    logits[1, [1, 2]] = [-0.0, 0.0]
    logits[2, 2099] = np.nan
    logits[3, 9] = -np.nan
    logits[4, 5] = np.inf
    logits[5] = -np.inf
    logits[6, :2000] = -np.inf
    assert run(device, logits, rules(7, 2100), [1] * 7).tolist() == [700, 1, -1, -1, -1, -1, 2000]
    assert run(device, logits[2:6], rules(4, 2100, temperature=1, top_p=0.5), [1] * 4).tolist() == [-1] * 4


CUTS = [
    pytest.param({}, id="all"),
    pytest.param({"top_k": 1}, id="top-1"),
    pytest.param({"top_k": 40}, id="top-40"),
    pytest.param({"top_p": 0.9}, id="top-p"),
    pytest.param({"top_p": 1e-6}, id="top-p-tiny"),
    pytest.param({"min_p": 0.2}, id="min-p"),
    pytest.param({"min_p": 1}, id="min-p-one"),
    pytest.param({"top_k": 300, "top_p": 0.7, "min_p": 0.01}, id="all-three"),
]


@pytest.mark.parametrize("spread", ["random", "ties", "peak", "flat"])
@pytest.mark.parametrize("cut", CUTS)
def test_sampled(device, cut, spread):
    logits = normal(2, 4, 700)
    if spread == "ties":
        logits = np.round(logits)
    if spread == "peak":
        logits[:, 33] = 60  # every other weight is 0
    if spread == "flat":
        logits[:] = 0.25
    g = rules(4, 700, temperature=[0.3, 0.8, 1, 2], seed=[1, 2**40, 2**64 - 1, 4], **cut)
    run(device, logits, g, [0, 1, 70, 100_000])


def boundary(seed: int, position: int) -> np.ndarray:
    """Neighbouring floats x: with the first, the seed draws from logits [x, 0] the first token; with the second not."""
    near, far = (np.array(x, F32).view(np.uint32) for x in (2**-10, 3))
    while far - near > 1:
        middle = near + (far - near) // 2
        x = np.array([-middle.view(F32), 0], F32)
        first = sampling.choose(x, records(rules(1, 2, temperature=1))[0], sampling.philox(seed, position)) == 0
        near, far = (middle, far) if first else (near, middle)
    return -np.array([near, far]).view(F32)


def test_weights_to_their_last_bits(device):
    """Logits at the boundary of a draw, one float before it and one behind: no term of the polynomial may be off."""

    def far_from_whole(seed: int) -> bool:  # the exponent at the boundary, for which the last terms are large
        u = sampling.philox(seed, 6) / 2**64
        return 0.06 < u < 0.45 and abs(np.log2(u / (1 - u)) % 1 - 0.5) < 0.1

    seeds = [seed for seed in range(400) if far_from_whole(seed)][:16]
    logits = np.zeros((32, 2), F32)
    logits[:, 0] = np.concatenate([boundary(seed, 6) for seed in seeds])
    g = rules(32, 2, temperature=1, seed=np.repeat(seeds, 2))
    assert run(device, logits, g, [5] * 32).tolist() == [0, 1] * 16


def test_target_that_a_stretch_ends_at(shuffled):
    """All that comes before the second stretch weighs as much as the target: the first that exceeds it is drawn."""
    seed, largest = 3, 1025  # behind one of weight 0 in the second stretch of 1,024, of which a thread has two
    u, logits = sampling.philox(seed, 6), np.full((1, 16 * 1024), -np.inf, F32)
    logits[0, largest], logits[0, 0] = 0, boundary(seed, 6)[1]
    small = (-np.log(2) * np.arange(20, 40.5, 0.5)).astype(F32)
    weight = sampling.weights(np.append(small, F32.type(0)), 1)[:-1]
    gap = 1
    for at in range(1, 1024):
        w = sampling.weights(logits[0], 1)
        if not (gap := (u * int(w.sum()) >> 64) - int(w[:1024].sum())):
            break
        logits[0, at] = small[np.flatnonzero((weight <= gap) & (weight > 0))[0]]
    assert gap == 0
    assert run(shuffled, logits, rules(1, 16 * 1024, temperature=1, seed=seed), [5]).tolist() == [largest]


@pytest.mark.parametrize("vocab", [1, 16, 17, 511, 8192, 8193, 8208, 8209])
def test_every_token_can_be_drawn(device, vocab):
    """A row is cut into 16 stretches, and each of those into one piece a thread: their first and last tokens, alone."""
    stretch = -(-vocab // 16)
    ends = sorted({min(v, vocab - 1) for s in (0, 1, 7, 15) for v in (s * stretch, (s + 1) * stretch - 1)})
    logits = np.full((len(ends), vocab), -100.0, F32)
    logits[np.arange(len(ends)), ends] = 100
    g = rules(len(ends), vocab, temperature=1, seed=range(len(ends)))
    assert run(device, logits, g, [3] * len(ends)).tolist() == ends


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param({"top_k": 3000, "top_p": 0.5}, id="candidates-suffice"),
        pytest.param({"top_k": 5500}, id="top-k-beyond-candidates"),
        pytest.param({"top_k": 5500, "top_p": 0.99}, id="both-beyond-candidates"),
        pytest.param({"top_p": 0.999}, id="top-p-beyond-candidates"),
    ],
)
def test_more_than_the_candidates_that_fit(device, cut):
    """A nearly flat distribution keeps thousands of tokens, so the kernel searches the row in global memory."""
    run(device, normal(3, 1, 6000, scale=0.3), rules(1, 6000, temperature=1, seed=9, **cut), [17])


@pytest.mark.parametrize(
    "vocab", [pytest.param(900, id="candidates-suffice"), pytest.param(4200, id="beyond-candidates")]
)
@pytest.mark.parametrize(
    "cut", [pytest.param({"top_k": 701}, id="top-k"), pytest.param({"top_p": 0.7}, id="top-p"),
            pytest.param({"top_k": 701, "top_p": 0.5}, id="both")]
)  # fmt: skip
def test_neighbouring_floats(device, vocab, cut):
    """One token more or less is another draw: the logits are floats one after the other, in the order of the tokens."""
    logits = np.tile((np.uint32(0x3F800000) + np.arange(vocab, dtype=np.uint32)).view(F32), (8, 1))
    run(device, logits, rules(8, vocab, temperature=1, seed=range(8), **cut), list(range(8)))


def test_all_in_one_bin(device):
    """More equal logits than candidates fit leave the list empty."""
    run(device, np.zeros((1, 4500), F32), rules(1, 4500, temperature=1, top_k=7, top_p=0.6, seed=5), [2])


@pytest.mark.parametrize("token", [0, 999])
def test_bans_the_first_and_the_last_id(device, token):
    logits, g = normal(6, 1, 1000), rules(1, 1000, stop_from=9)
    logits[0, token], records(g)["stop_ids"][0, :2] = 40, [token, 5]
    assert run(device, logits, g, [3]) != [token]


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_penalties_and_bans(device, temperature):
    rng = np.random.default_rng(6)
    g = rules(
        4, 900, temperature=temperature, seed=[1, 2, 3, 4], repetition_penalty=[1, 1.3, 0.8, 1],
        presence_penalty=[0, 0.4, 0, -1], frequency_penalty=[0, 0.2, 0, 0.7],
    )  # fmt: skip
    g.counts[:] = rng.integers(0, 6, g.counts.shape)
    stop_ids = records(g)["stop_ids"]
    stop_ids[:] = np.stack([rng.permutation(900)[:STOP_IDS] for _ in range(4)])  # as many as there may be
    stop_ids[0, 3:], stop_ids[1, 20:], records(g)["stop_from"] = -1, -1, [0, 30, 31, 32]
    logits = normal(7, 4, 900)
    for i in range(4):
        logits[i, stop_ids[i][stop_ids[i] >= 0]] = 40  # sure to be taken unless banned
    tokens = run(device, logits, g, [30] * 4)
    assert [tokens[i] in stop_ids[i] for i in range(4)] == [True, True, True, False]


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
@pytest.mark.parametrize(
    ("count", "taken"),
    [pytest.param(1, 7, id="in-the-prompt"), pytest.param(2, 2, id="once"), pytest.param(5, 2, id="both")],
)
def test_penalties_of_what_was_generated(device, penalty, count, taken):
    logits, g = np.full((1, 40), -1, F32), rules(1, 40, **{penalty: 2})
    logits[0, [7, 2]], g.counts[0, 7] = [5, 4], count
    assert run(device, logits, g, [3]) == [taken]


def test_sequence_of_draws_is_the_same_alone(device):
    logits = normal(8, 3, 200)
    g = rules(3, 200, temperature=1, seed=[5, 6, 7])
    together = run(device, logits, g, [10, 11, 12])
    for i in range(3):
        alone = Sampling(g.rules[i : i + 1], g.counts[i : i + 1])
        assert run(device, logits[i : i + 1], alone, [10 + i])[0] == together[i]


def test_order_of_threads_does_not_matter(shuffled):
    g = rules(1, 9000, temperature=1, top_k=50, top_p=0.9, seed=3)
    run(shuffled, normal(9, 1, 9000), g, [8])


def test_errors_name_the_argument(device):
    g = rules(2, 50)
    g.counts = g.counts.astype(np.int64)
    with pytest.raises(DeviceError, match=r"sample: expected counts to be int32 \[3, 50\], found int64 \[3, 50\]"):
        run(device, normal(1, 2, 50), g, [1, 1])
