"""The NumPy backend: every operation in float32 on the CPU. It runs models without a GPU, and it is the reference for
the kernels.

A row's bits depend on its own sequence only: see blas.py for GEMMs, and attention.py. Both are divided among threads;
see threads.py.
"""

from __future__ import annotations

import contextlib
import math
import mmap

import ml_dtypes
import numpy as np

from ..sizes import MAIL, PAGE
from ..weights.quantised import Quantised
from . import attention, blas, dequantise
from .base import Ops
from .device import HostDevice
from .sampling import sample
from .threads import Team, team

_ROUND = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16), "float32": None}


class NumpyOps(Ops):
    """All computation is float32. dtype "bfloat16" or "float16" rounds weights that are not quantised to that type, for
    comparisons with a GPU."""

    name = "numpy"
    dtype = np.dtype(np.float32)
    tile, pass_rows = blas.TILE, 2 * blas.SIZES[0]  # larger passes are not faster

    def __init__(self, device: HostDevice | None = None, dtype: str = "float32") -> None:
        self.device = device or HostDevice()
        self._round = _ROUND[str(dtype)]
        self._shapes = set()  # shapes of all weights
        self.use(team())

    def use(self, team: Team) -> None:
        """Use this team of threads instead of the process's default team."""
        self._team = team

    @property
    def align(self) -> int:
        """1 if a row has the same bits at every place of a BLAS product, else the rows of the smallest product."""
        return 1 if all(blas.tiling(*shape).anywhere for shape in self._shapes) else blas.TILE

    # -- memory ---------------------------------------------------------------------------------------------------

    def weight(self, parts, layout="rows", head_dim=0):
        """Stack the parts as one float32 matrix, converted part by part."""
        out = _own_pages(sum(len(p) for p in parts), parts[0].shape[1])
        row = 0
        for part in parts:
            rows = out[row : row + len(part)]
            if isinstance(part, Quantised):  # not rounded: these are the exact numbers of the file
                dequantise.fill(part, rows)
            else:
                rows[...] = part if self._round is None else part.astype(self._round, copy=False)
            row += len(part)
        self._shapes.add(out.shape)
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

    def linear(self, x, weight, out, kind, bias=None, residual=None, scale=1.0):
        y = np.empty(out.shape, np.float32) if residual is not None else out
        (blas.prefill if kind.tiled else blas.decode)(self._team, x, weight, y)
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

    def save_pages(self, pool, host, pages, places):
        host[places] = pool[:, pages].swapaxes(0, 1)

    def load_pages(self, pool, host, pages, places):
        pool[:, pages] = host[places].swapaxes(0, 1)

    def attend(self, qkv, s, cache, heads, window, out, scratch, scale=None):
        scale = np.float32(1 / math.sqrt(cache.k.shape[3]) if scale is None else scale)
        if s.kind.tiled:
            attention.prefill(self._team, qkv, s, cache, heads, window, scale, out)
        else:
            attention.decode(qkv, s, cache, heads, window, scale, out)

    def silu_mul(self, gate_up, out):
        gate, up = gate_up[:, : out.shape[1]], gate_up[:, out.shape[1] :]
        with np.errstate(over="ignore"):  # exp(-gate) = inf is correct: the quotient is 0
            np.exp(-gate, out=out)
        out += 1
        np.divide(gate, out, out=out)
        out *= up

    def gelu(self, x, tanh, out):
        with np.errstate(over="ignore"):  # infinite powers are correct: the factor is 0 or 1
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


def _own_pages(n, k):
    """[n, k] float32, mapped directly from the system: in the allocator's heap long-lived weights would fragment the
    memory that temporary decoded tensors free. Uses huge pages if available, as NumPy does for large arrays."""
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    pages = mmap.mmap(-1, max(1, 4 * n * k), **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # the kernel was built without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, np.float32, n * k).reshape(n, k)


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
