"""Sampling: the reference definition in NumPy, which every backend computes bit for bit.

Input: logits l [V] float32 of one row, the rules of its sequence (RULES), and `position`, that of the new token:

1. Bans: stop tokens are minus infinity while position < stop_from.
2. Penalties: seen = in the prompt or generated, count = times generated. Repetition r, where seen: l / r if l > 0, else
   l * r. Then l - frequency * count - presence, where count > 0. float32, one rounding per operation.
3. If any l is NaN, or the largest is not finite: no token, -1.
4. Temperature 0: the largest, of equal ones the first. Done.
5. Weights: w = floor(2^40 * 2^y), y = (l - max) / temperature * log2(e). y, and 2^y by a polynomial, are float32 with
   one rounding per operation. From here on all numbers are integers, so sums do not depend on their order, and all
   backends agree exactly. The largest has w = 2^40.
6. top_k: keep the k largest. top_p: of these keep the fewest largest whose weights reach top_p of the kept total.
   Tokens equal to the last kept one are kept too. min_p: drop those with w < min_p * 2^40.
7. Draw: u = 64 bits of Philox4x32-10 with key `seed` and counter `position`; target = floor(u * total / 2^64) of the
   kept total; the token is the first, by index, at which the running sum of kept weights exceeds the target.

So a token depends on its logits, rules, seed and position, but not on the row or the batch. kernels/sample.cu computes
the same; the tests compare the two.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..sizes import STOP_IDS

Array = Any

# The rules of a sequence; struct Rules in kernels/sample.cuh. Fields that SamplingParams also has share their names.
RULES = np.dtype([
    ("temperature", np.float32),  # 0 = greedy
    ("top_k", np.int32),  # 0 = off
    ("top_p", np.float32),  # 1 = off
    ("min_p", np.float32),  # 0 = off
    ("repetition_penalty", np.float32),  # 1 = off
    ("presence_penalty", np.float32),  # 0 = off
    ("frequency_penalty", np.float32),  # 0 = off
    ("stop_from", np.int32),  # first position at which a stop token is allowed (min_tokens)
    ("seed", np.uint64),
    ("stop_ids", np.int32, STOP_IDS),  # ids first, then -1; banned while position < stop_from
], align=True)  # fmt: skip

ONE = 1 << 40  # weight of the largest token
LOG2E = np.float32(1.4426950408889634)
POWER = tuple(  # 2^f for |f| <= 1/2: coefficients from the highest, error below 2e-7
    np.float32(c) for c in (1.5403530e-4, 1.3333558e-3, 9.6181291e-3, 5.5504109e-2, 2.4022651e-1, 6.9314718e-1, 1.0)
)
TINY = np.finfo(np.float32).tiny  # temperatures below it, subnormal, are 0
MASK = (1 << 32) - 1


def off(count: int) -> Array:
    """Neutral rules [count]: greedy, no penalty, no stop token."""
    rules = np.zeros(count, RULES)
    rules["top_p"] = rules["repetition_penalty"] = 1
    rules["stop_ids"] = -1
    return rules


def as_bytes(rules: Array) -> Array:
    """Rules [S + 1] as bytes [S + 1, RULES.itemsize] uint8, because device arrays have no record types."""
    return rules.view(np.uint8).reshape(len(rules), RULES.itemsize)


def adjust(logits: Array, counts: Array, rules: Any, position: int) -> Array:
    """Steps 1 and 2: a new array [V] float32. counts [V] int32 as in Sampling.counts."""
    x = np.array(logits, np.float32)
    if position < rules["stop_from"]:
        x[rules["stop_ids"][rules["stop_ids"] >= 0]] = -np.inf
    if not penalised(rules):
        return x
    r, count = rules["repetition_penalty"], (counts >> 1).astype(np.float32)
    x = np.where(counts != 0, np.where(x > 0, x / r, x * r), x)
    return np.where(count > 0, x - rules["frequency_penalty"] * count - rules["presence_penalty"], x)


def penalised(rules: Any) -> bool:
    """Whether any penalty is on; only then counts are read and updated."""
    return rules["repetition_penalty"] != 1 or rules["presence_penalty"] != 0 or rules["frequency_penalty"] != 0


def weights(x: Array, temperature: float) -> Array:
    """Step 5: [V] uint64, 2^40 for the largest. The largest x must be finite."""
    y = np.maximum((x - x.max()) / np.float32(temperature) * LOG2E, np.float32(-63))
    n = np.rint(y)
    f = y - n
    power = np.full_like(f, POWER[0])
    for c in POWER[1:]:
        power = power * f + c
    return (power * np.float32(ONE)).astype(np.uint64) >> (-n).astype(np.uint64)


def keep(x: Array, w: Array, top_k: int, top_p: float, min_p: float) -> Array:
    """Step 6: mask [V] of the tokens that may be drawn. top_k 0, top_p 1, min_p 0: off."""
    kept = w > 0  # a weight of 0 is never drawn and adds to no sum
    if 0 < top_k < len(x):
        kept &= x >= np.partition(x, len(x) - top_k)[len(x) - top_k]
    if top_p < 1:
        need = max(1, int(w[kept].sum()) * int(float(np.float32(top_p)) * 2**64) >> 64)
        ids = np.flatnonzero(kept)
        ids = ids[np.argsort(-x[ids])]
        kept &= x >= x[ids[np.searchsorted(np.cumsum(w[ids]), np.uint64(need))]]
    return kept & (w >= np.uint64(np.float32(min_p) * np.float32(ONE)))


def philox(seed: int, position: int) -> int:
    """The first 64 of the 128 bits of Philox4x32-10 (Salmon et al., 2011) with counter (position, 0, 0, 0)."""
    c, k0, k1 = (position & MASK, 0, 0, 0), seed & MASK, seed >> 32 & MASK
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = (b >> 32 ^ c[1] ^ k0, b & MASK, a >> 32 ^ c[3] ^ k1, a & MASK)
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return c[0] | c[1] << 32


def draw(w: Array, kept: Array, u: int) -> int:
    """Step 7: the token at which the running sum of kept weights exceeds u / 2^64 of their total."""
    running = np.cumsum(np.where(kept, w, np.uint64(0)))
    return int(np.searchsorted(running, np.uint64(u * int(running[-1]) >> 64), side="right"))


def choose(x: Array, rules: Any, u: int) -> int:
    """Steps 3 to 7 for adjusted logits x [V] float32 and 64 random bits u."""
    best = int(np.argmax(x))  # NaN counts as the largest
    if not np.isfinite(x[best]):
        return -1
    if rules["temperature"] < TINY:
        return best
    w = weights(x, rules["temperature"])
    return draw(w, keep(x, w, int(rules["top_k"]), rules["top_p"], rules["min_p"]), u)


def sample_row(logits: Array, counts: Array, rules: Any, position: int) -> int:
    """The token at `position` of a sequence with these rules; -1 if the logits [V] are not finite numbers."""
    with np.errstate(over="ignore", invalid="ignore"):  # infinities are looked for afterwards
        x = adjust(logits, counts, rules, position)
        return choose(x, rules, philox(int(rules["seed"]), position))


def sample(logits: Array, step: Any, sampling: Any, out: Array) -> None:
    """Ops.sample on the host: logits [B, V] of the rows step.last, out [B] int32; updates counts."""
    every, counts = sampling.rules.view(RULES)[:, 0], sampling.counts
    for i, row in enumerate(step.last):
        seq = int(step.seqs[row])
        rules = every[seq]
        out[i] = token = sample_row(logits[i], counts[seq], rules, int(step.positions[row]) + 1)
        if token >= 0 and penalised(rules):
            counts[seq, token] += 2
