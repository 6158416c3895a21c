"""How the next token is chosen: the definition, in NumPy. NumpyOps runs it, the kernels are tested against it.

For a row of logits l [V] of a sequence, whose next token will stand at `position`:

1. Stop tokens are banned (-inf) while position < stop_from (min_tokens).
2. Penalties. counts[t] is 2 * (times t was generated) + (1 if t is in the prompt). Where counts[t] > 0, l is divided
   by the repetition penalty if positive, else multiplied; then frequency * times and, if times > 0, presence are
   taken off.
3. Temperature 0: the token with the largest l, the first of equals.
4. Else token t weighs w = floor(exp((l - max l) / temperature) * 2^40), an integer: sums are exact, in whatever order
   they are taken, so that the choice does not depend on how many threads took part.
5. Tokens are kept by value, equals together: the top_k largest; of those the fewest that weigh top_p of their total;
   of those the ones that weigh at least min_p of the heaviest.
6. One random 64-bit number u of (seed, position) picks the first token, in the order of ids, at which the running sum
   of the kept weights exceeds u * total / 2^64.

A row that holds a NaN, or nothing but -inf, has no next token: -1, which the generation loop turns into an error.
"""

from __future__ import annotations

import numpy as np

from .ops.base import Array, Sampling, Step

ONE = 1 << 40  # the weight of the most likely token


def philox(seed: int, position: int) -> int:
    """64 random bits: the first two words of Philox4x32-10 with key `seed` and counter (position, 0, 0, 0).

    Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011)."""
    word = 0xFFFFFFFF
    key = [seed & word, seed >> 32 & word]
    c = [position & word, 0, 0, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b & word, a >> 32 ^ c[3] ^ key[1], a & word]
        key = [key[0] + 0x9E3779B9 & word, key[1] + 0xBB67AE85 & word]
    return c[0] | c[1] << 32


def penalise(logits: Array, counts: Array, repetition: float, presence: float, frequency: float) -> Array:
    """Step 2, in float32.  logits [V] float32, counts [V] int32"""
    f = np.float32
    out = np.where(counts > 0, np.where(logits > 0, logits / f(repetition), logits * f(repetition)), logits)
    times = counts >> 1
    return out - f(frequency) * times.astype(f) - f(presence) * (times > 0).astype(f)


def weights(logits: Array, temperature: float) -> Array:
    """Step 4: fixed-point weights, uint64.  logits [V] float32"""
    x = (logits - logits.max()) / np.float32(temperature)
    return (np.exp(x) * np.float32(ONE)).astype(np.uint64)


def keep(logits: Array, w: Array, top_k: int, top_p: float, min_p: float) -> Array:
    """Step 5: the weights, 0 where a token is not kept; top_k 0 and top_p 1 are off.  logits [V] float32, w [V] uint64"""
    if 0 < top_k < len(logits):
        w = np.where(logits >= np.partition(logits, -top_k)[-top_k], w, np.uint64(0))
    if top_p < 1:
        enough = int(float(np.float32(top_p)) * float(w.sum()))
        order = np.argsort(-logits, kind="stable")
        running = np.cumsum(w[order])
        last = order[min(np.searchsorted(running, np.uint64(enough)), len(order) - 1)]
        w = np.where(logits >= logits[last], w, np.uint64(0))
    return np.where(w >= np.uint64(float(np.float32(min_p)) * ONE), w, np.uint64(0))


def sample_row(
    logits: Array,
    position: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> int:
    """Steps 3 to 6 for one row of logits [V] float32; the token will stand at `position`. -1 if there is no choice."""
    top = logits.max()
    if not np.isfinite(top):
        return -1
    if temperature == 0:
        return int(logits.argmax())
    running = np.cumsum(keep(logits, weights(logits, temperature), top_k, top_p, min_p))
    target = philox(seed, position) * int(running[-1]) >> 64
    return int(np.searchsorted(running, np.uint64(target), side="right"))


def sample(logits: Array, s: Step, sampling: Sampling, out: Array) -> None:
    """Ops.sample on NumPy arrays: out[i] = next token of row s.last[i].  logits [B, V] float32, out [B] int32"""
    for i, row in enumerate(s.last):
        seq, position = int(s.seqs[row]), int(s.positions[row]) + 1
        values = logits[i]
        stops = sampling.stop_ids[seq]
        if position < sampling.stop_from[seq] and (stops >= 0).any():
            values = values.copy()
            values[stops[stops >= 0]] = -np.inf
        penalty = [float(p[seq]) for p in (sampling.repetition, sampling.presence, sampling.frequency)]
        penalised = penalty != [1, 0, 0]
        if penalised:
            values = penalise(values, sampling.counts[seq], *penalty)
        token = sample_row(
            values,
            position,
            temperature=float(sampling.temperature[seq]),
            top_k=int(sampling.top_k[seq]),
            top_p=float(sampling.top_p[seq]),
            min_p=float(sampling.min_p[seq]),
            seed=int(sampling.seed[seq]),
        )
        out[i] = token
        if penalised and token >= 0:
            sampling.counts[seq, token] += 2
