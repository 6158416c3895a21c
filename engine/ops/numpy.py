"""The NumPy backend: every operation in float32 on the CPU. It generates where there is no GPU, and it is what the
kernels are compared with.

Called through Ops like any backend; touches only the arrays it is given. A row's numbers depend on that row and its
sequence alone: products of a decode step (R <= 16) are matrix-vector products, one a row, over the same blocks of the
weight whatever R; larger steps are a matrix product for each tile of 64 rows, as BLAS sums up in an order that depends
on their number. BLAS brings the threads (OPENBLAS_NUM_THREADS); on cores that other work shares, one is
faster than two.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from ..sampling import sample
from .base import DECODE_ROWS, MAIL, PAGE, Ops
from .device import HostDevice

_BLOCK = 1 << 22  # bytes of a weight that all rows go over before the next; BLAS leaves smaller ones to one thread
_ROUND = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": None}


class NumpyOps(Ops):
    """float32 throughout. dtype "bfloat16" or "float16" rounds the weights to it first, to compare with a GPU."""

    name = "numpy"
    dtype = np.dtype(np.float32)
    align = PAGE  # BLAS sums up the rows of a product in orders that depend on where they stand

    def __init__(self, device: HostDevice | None = None, dtype: str = "float32") -> None:
        self.device = device or HostDevice()
        self._round = _ROUND[str(dtype)]

    # -- memory ---------------------------------------------------------------------------------------------------

    def weight(self, parts, layout="rows", head_dim=0):
        """The parts below one another as one float32 matrix, converted part by part."""
        out = np.empty((sum(len(p) for p in parts), parts[0].shape[1]), np.float32)
        row = 0
        for part in parts:
            rounded = part if self._round is None else part.astype(self._round, copy=False)
            out[row : row + len(part)] = rounded
            row += len(part)
        return out

    # -- primitives -----------------------------------------------------------------------------------------------

    def embed(self, ids, table, out, scale=1.0):
        np.take(table, ids, axis=0, out=out)
        if scale != 1:
            out *= np.float32(scale)

    def embed_at(self, ids, table, at, places, out):
        np.take(table, ids, axis=0, out=out)
        out += places[at]

    def rms_norm(self, x, weight, eps, out, rows=None):
        x = x if rows is None else x[rows]
        scale = np.add.reduce(x * x, -1, keepdims=True)
        scale *= np.float32(1 / x.shape[-1])
        scale += np.float32(eps)
        np.sqrt(scale, out=scale)
        np.divide(x, scale, out=out)
        out *= weight

    def layer_norm(self, x, weight, bias, eps, out, rows=None, keep=None):
        x = x if rows is None else x[rows]
        share = np.float32(1 / x.shape[-1])
        centred = x - np.add.reduce(x, -1, keepdims=True) * share
        scale = np.add.reduce(centred * centred, -1, keepdims=True)
        scale *= share
        scale += np.float32(eps)
        np.sqrt(scale, out=scale)
        np.divide(centred, scale, out=out)
        out *= weight
        out += bias
        if keep is not None:
            keep[...] = out

    def linear(self, x, weight, out, bias=None, residual=None, scale=1.0):
        y = np.empty(out.shape, np.float32) if residual is not None else out
        rows, width = x.shape
        if rows > DECODE_ROWS:
            for first in range(0, rows, PAGE):
                np.matmul(x[first : first + PAGE], weight.T, out=y[first : first + PAGE])
        else:
            step = max(64, _BLOCK // (4 * width) // 64 * 64)
            for first in range(0, len(weight), step):
                for r in range(rows):
                    np.dot(weight[first : first + step], x[r], out=y[r, first : first + step])
        if scale != 1:
            y *= np.float32(scale)
        if bias is not None:
            y += bias
        if residual is not None:
            np.add(y, residual, out=out)

    def head_norm(self, qkv, q_weight, k_weight, eps, heads, kv_heads):
        x = qkv.reshape(len(qkv), heads + 2 * kv_heads, -1)
        for part, weight in ((x[:, :heads], q_weight), (x[:, heads : heads + kv_heads], k_weight)):
            self.rms_norm(part, weight, eps, part)

    def rope_append(self, qkv, rope, s, cache, heads):
        groups, d = cache.k.shape[1], cache.k.shape[3]
        x = qkv.reshape(len(qkv), heads + 2 * groups, d)
        table = rope[s.positions][:, None]  # [R, 1, d]
        cos, sin = table[..., : d // 2], table[..., d // 2 :]
        a, b = x[:, : heads + groups, : d // 2], x[:, : heads + groups, d // 2 :]
        rotated = a * cos - b * sin
        b *= cos
        b += a * sin
        a[...] = rotated
        self.append(qkv, s, cache, heads)

    def append(self, qkv, s, cache, heads):
        groups, d = cache.k.shape[1], cache.k.shape[3]
        x = qkv.reshape(len(qkv), heads + 2 * groups, d)
        page, slot = s.table[s.seqs, s.positions // PAGE], s.positions % PAGE
        cache.k[page, :, slot] = x[:, heads : heads + groups]
        cache.v[page, :, slot] = x[:, heads + groups :]

    def attend(self, qkv, s, cache, heads, window, out, scratch, packed=False, scale=None):
        groups, d = cache.k.shape[1], cache.k.shape[3]
        queries = qkv.reshape(len(qkv), -1, d)[:, :heads].reshape(len(qkv), groups, heads // groups, d)
        results = out.reshape(len(qkv), groups, heads // groups, d)
        spare, scale = len(s.table) - 1, np.float32(1 / math.sqrt(d) if scale is None else scale)
        for first, last, seq in _runs(s.seqs):
            if seq == spare:
                out[first:last] = 0
                continue
            with np.errstate(over="ignore", invalid="ignore"):  # products with what nobody wrote yet, masked afterwards
                rows = queries[first:last], s.visible[first:last], results[first:last]
                _attend(*rows, s.table[seq], cache, window, scale)

    def silu_mul(self, gate_up, out):
        gate, up = gate_up[:, : out.shape[1]], gate_up[:, out.shape[1] :]
        with np.errstate(over="ignore"):  # exp(-gate) = inf is right: the quotient is 0
            np.exp(-gate, out=out)
        out += 1
        np.divide(gate, out, out=out)
        out *= up

    def gelu(self, x, tanh, out):
        with np.errstate(over="ignore"):  # powers that are infinite are right: the factor is 0 or 1
            np.multiply(x, _tanh_factor(x) if tanh else _below(x), out=out)

    def pool(self, x, first, count, out):
        for i, (start, rows) in enumerate(zip(first.tolist(), count.tolist(), strict=True)):
            np.divide(np.add.reduce(x[start : start + rows], 0), np.float32(max(rows, 1)), out=out[i])

    def sample(self, logits, s, sampling, out, scratch):
        sample(logits, s, sampling, out)

    def advance(self, s, tokens, mail):
        real = s.seqs != len(s.table) - 1
        mail.box[real, mail.place[real]] = tokens[real]
        mail.place[real] = (mail.place[real] + 1) % MAIL
        s.ids[real] = np.maximum(tokens[real], 0)
        s.positions[real] += 1
        s.visible[real] += 1


def _tanh_factor(x):
    """(1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2"""
    y = x * x
    y *= np.float32(0.044715)
    y += 1
    y *= x
    y *= np.float32(math.sqrt(2 / math.pi))
    np.tanh(y, out=y)
    y += 1
    y *= np.float32(0.5)
    return y


def _tail_polynomial():
    """[9] float32, highest power first: P(N > x) e^(x^2 / 2) for a standard normal N, as a polynomial in
    t = 1 / (1 + 0.3 x), 0 <= x <= 14. Interpolated at import between values of math.erfc; relative error below 2e-7."""
    lowest = 1 / (1 + 0.3 * 14)
    values = [
        0.5 * math.exp(x * x / 2) * math.erfc(x / math.sqrt(2))
        for t in np.polynomial.chebyshev.chebpts1(9) * (1 - lowest) / 2 + (1 + lowest) / 2
        for x in [(1 / t - 1) / 0.3]
    ]
    fit = np.polynomial.Chebyshev.fit(np.polynomial.chebyshev.chebpts1(9), values, 8, domain=[-1, 1])
    line = np.polynomial.Polynomial([-(1 + lowest) / (1 - lowest), 2 / (1 - lowest)])
    return fit.convert(kind=np.polynomial.Polynomial)(line).coef[::-1].astype(np.float32)


_TAIL = _tail_polynomial()


def _below(x):
    """P(N < x) for a standard normal N: NumPy has no error function, and math.erf takes one number at a time."""
    t = 1 / (1 + np.float32(0.3) * np.abs(x))
    tail = np.full_like(x, _TAIL[0])
    for coefficient in _TAIL[1:]:
        tail *= t
        tail += coefficient
    tail *= np.exp(x * x * np.float32(-0.5))
    return np.where(x < 0, tail, 1 - tail)


def _runs(seqs):
    """(first row, row after the last, sequence) of every run of one sequence inside a tile of PAGE rows."""
    ids = seqs.tolist()
    first = 0
    for row in range(1, len(ids) + 1):
        if row == len(ids) or ids[row] != ids[first] or row % PAGE == 0:
            yield first, row, ids[first]
            first = row


def _pages(array, pages):
    """array[pages], without a copy where the pages stand in a row."""
    first, count = int(pages[0]), len(pages)
    if int(pages[-1]) - first == count - 1 and (count < 3 or (np.diff(pages) == 1).all()):
        return array[first : first + count]
    return array[pages]


def _attend(q, visible, out, table, cache, window, scale):
    """Attention of rows of one sequence.  q, out [r, G, H / G, d], visible [r]; n pages of G heads of PAGE tokens."""
    r, groups, share, d = q.shape
    low = max(0, int(visible.min()) - window) // PAGE if window else 0
    high = int(visible.max())
    pages = table[low : -(-high // PAGE)]
    n, rows = len(pages), r * share
    k, v = _pages(cache.k, pages), _pages(cache.v, pages)
    q = np.multiply(q.transpose(1, 0, 2, 3), scale).reshape(groups, rows, d)
    score = np.empty((groups, rows, n * PAGE), np.float32)
    by_page = score.reshape(groups, rows, n, PAGE).transpose(2, 0, 1, 3)
    np.matmul(q, k.swapaxes(2, 3), out=by_page)
    if r > 1 or window:
        np.copyto(score.reshape(groups, r, share, n * PAGE), -np.inf, where=_hidden(visible, window, low * PAGE, n))
    tail = high - (low + n - 1) * PAGE  # tokens of the last page; what stands behind them nobody wrote
    score[..., (n - 1) * PAGE + tail :] = -np.inf
    score -= np.maximum.reduce(score, -1, keepdims=True)
    np.exp(score, out=score)
    total = np.add.reduce(score, -1, keepdims=True)
    y = np.matmul(by_page[-1, :, :, :tail], v[-1, :, :tail])
    if n > 1:
        y += np.add.reduce(np.matmul(by_page[:-1], v[:-1]), 0)
    y /= total
    out[...] = y.reshape(groups, r, share, d).transpose(1, 0, 2, 3)


def _hidden(visible, window, first, pages):
    """Which tokens of the pages a row must not see.  [1, r, 1, pages * PAGE] bool"""
    token = np.arange(first, first + pages * PAGE)
    seen = visible.reshape(1, -1, 1, 1)
    hidden = token >= seen
    return hidden | (token < seen - window) if window else hidden
