"""Backend "cuda": every operation a kernel of this project, matrix products included.

Called by the model through Ops; reaches the GPU only through a Device. This file holds the products (packing, linear,
embed and the fused composites), DeviceOps all the rest. The kernels' side is kernels/packed.cuh, linear_decode.cu
(R <= 16) and linear_prefill.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DeviceError, UnsupportedModel
from . import tuned
from .base import DECODE_ROWS
from .products import c_type, check_linear, expect, laid_out
from .relay import COMES, ENDED, STARTS, Handed, Stream, relay
from .rows import DeviceOps
from .shapes import DecodeShape, Shapes, prefill_shape, shared_limit

SCALES = 1024  # bytes of shared memory that decode kernels declare themselves, at most


@dataclass(frozen=True)
class PackedWeight:
    """A matrix [n, k] in the order in which the tensor cores take it: see kernels/packed.cuh."""

    data: Any  # [tiles * k * 16] T
    n: int
    k: int
    layout: str  # "rows", "qkv" or "gate_up": which rows share a tile
    span: int  # tiles of a group, rows i and i + 8 * span of which share a tile: 1, d / 16 or n / 16

    @property
    def tiles(self) -> int:
        return -(-self.n // 16)


class CudaOps(DeviceOps):
    """Products of packed weights by mma.sync, fused with norms before and RoPE, residual or SiLU after."""

    name = "cuda"

    @cached_property
    def shapes(self) -> Shapes:
        """The launch shapes of decode products. DeviceError if a tuned file of this device is damaged."""
        return tuned.shapes(self.device)

    @property
    def _t(self) -> str:
        """T as the kernels spell it."""
        return c_type(self.dtype)

    # -- weights --------------------------------------------------------------------------------------------------

    def weight(self, parts: Sequence[Any], layout: str = "rows", head_dim: int = 0) -> PackedWeight:
        """Packs part by part, so that beside the packed matrix only one plain part is on the device.

        parts: arrays [rows, K] of the host, or of the device in T. UnsupportedModel if K is not a multiple of 16."""
        n, k = sum(len(p) for p in parts), parts[0].shape[1]
        if k % 16:
            raise UnsupportedModel(
                f"backend {self.name}: expected a matrix with a multiple of 16 columns, found {[n, k]}"
            )
        layout, span = _interleave(layout, n, head_dim)
        packed = PackedWeight(self.device.empty((-(-n // 16) * 16 * k,), self.dtype), n, k, layout, span)
        kernel = self.device.kernel("pack.cu", f"pack<{self._t}>")
        first = 0
        for i, part in enumerate(parts):
            if len(part.shape) != 2 or part.shape[1] != k:
                raise DeviceError(f"weight: expected part {i} to be [rows, {k}], found {list(part.shape)}")
            plain = self._upload_part(part)
            end = first + len(part) if i + 1 < len(parts) else packed.tiles * 16
            threads = -(-(end - first) // 8) * (k // 16) * 32
            sizes = [np.int32(v) for v in (first, end - first, len(part), k, span)]
            self.device.launch(kernel, (-(-threads // 256),), (256,), [plain, packed.data, *sizes])
            self.device.synchronize()
            first = end
        return packed

    def _upload_part(self, part: Any) -> Any:
        if isinstance(part, np.ndarray):
            return self.device.upload(np.ascontiguousarray(part, self.dtype))
        expect("weight", "part", part, self.dtype, part.shape)
        return part

    # -- primitives -----------------------------------------------------------------------------------------------

    def buffers(self, c, rows, last):
        """Those of a decode step hand values on from kernel to kernel: see relay.py."""
        b = super().buffers(c, rows, last)
        if rows <= DECODE_ROWS:
            b.layers = relay(self.device, c, b, self.dtype)
        return b

    def embed(self, ids, table, out, norm=None):
        rows, k = len(out), table.k
        expect("embed", "ids", ids, np.int32, (rows,))
        if isinstance(out, Stream):
            self._check_stream("embed", out, k, norm)
            kernel = self.device.kernel("pack.cu", f"embed_stream<{self._t}>")
            places = out.places
            args = [ids, table.data, norm, out.x, out.h.data, out.squares, np.int32(rows), np.int32(k)]
            blocks = rows + min(2 * self.device.multiprocessors, -(-len(places) // 128))
            self.device.launch(kernel, (blocks,), (128,), [*args, places, np.int32(len(places))], dependent=True)
            return
        expect("embed", "out", out, np.float32, (rows, k))
        kernel = self.device.kernel("pack.cu", f"embed_packed<{self._t}>")
        self.device.launch(kernel, (rows,), (128,), [ids, table.data, out, np.int32(k)], dependent=True)

    def linear(self, x, weight, out, bias=None, residual=None, norm=None):
        rows = len(x)
        if isinstance(out, Stream):
            self._add(x, weight, out, residual, norm)
            return
        check_linear("linear", (rows, weight.n), self.dtype, out, bias, residual)
        kind = c_type(out.dtype)
        store = [np.int32(weight.n), np.int32(weight.span), bias, residual, out]
        if rows > DECODE_ROWS:
            expect("linear", "x", x, self.dtype, (rows, weight.k))
            self._prefill(f"prefill_store<{self._t}, {kind}", weight, x, store)
            return
        self._decode("linear", f"decode_store<{self._t}, {kind}", weight, x, store)

    def _add(self, x: Any, weight: PackedWeight, out: Stream, residual: Stream, norm: Any) -> None:
        """The residual stream of a decode step: out = x @ weight.T + residual, ready for the norm that reads it."""
        self._check_stream("linear", out, weight.n, norm)
        expect("linear", "residual", residual.x, np.float32, (len(x), weight.n))
        args = [np.int32(weight.n), residual.x, norm, out.x, out.h.data, out.squares]
        self._decode("linear", f"decode_add<{self._t}", weight, x, args)

    # -- composites -----------------------------------------------------------------------------------------------

    def norm_qkv(self, c, w, b, s, cache, rope):
        weight, rows = w.qkv, len(b.x)
        if c.qk_norm and isinstance(b.x, Stream):  # a head norm needs whole heads, which no thread here holds
            store = [np.int32(weight.n), np.int32(weight.span), w.qkv_bias, None, b.qkv]
            self._decode("norm_qkv", f"decode_store<{self._t}, {self._t}", weight, b.x, store, c.eps)
            self.head_norm(b.qkv, w.q_norm, w.k_norm, c.eps, c.heads, c.kv_heads)
            self.rope_append(b.qkv, rope, s, cache, c.heads)
            return
        if c.qk_norm or weight.layout != "qkv":
            super().norm_qkv(c, w, b, s, cache, rope)
            return
        self._expect_attention("norm_qkv", b.qkv, s, cache, c.heads)
        qkv, *_ = laid_out("norm_qkv", "qkv", b.qkv, self.dtype, (rows, weight.n))
        expect("norm_qkv", "rope", rope, np.float32, (len(rope), c.head_dim))
        if w.qkv_bias is not None:
            expect("norm_qkv", "bias", w.qkv_bias, np.float32, (weight.n,))
        tail = [w.qkv_bias, rope, s.seqs, s.positions, s.table, np.int32(s.table.shape[1]), qkv, cache.k, cache.v,
                np.int32(c.heads), np.int32(c.kv_heads), np.int32(c.head_dim)]  # fmt: skip
        self._normed("norm_qkv", "qkv", c, weight, b.x, w.attn_norm, b.h, tail, tail)

    def norm_gate_up(self, c, w, b):
        rows, weight = len(b.mid), w.gate_up
        if weight.layout != "gate_up":
            super().norm_gate_up(c, w, b)
            return
        ffn, row, run = laid_out("norm_gate_up", "ffn", b.ffn, self.dtype, (rows, weight.n // 2))
        width = np.int32(weight.n // 2)
        self._normed("norm_gate_up", "gate", c, weight, b.mid, w.mlp_norm, b.h, [width, row, run, ffn], [width, ffn])

    def norm_head(self, c, w, b, s):
        """Always the decode kernel, up to 16 rows at a time: a row's logits have the same bits in every company.

        A decode step wants the logits of all its rows, in order."""
        weight, count = w.head, len(s.last)
        expect("norm_head", "last", s.last, np.int32, (count,))
        check_linear("norm_head", (count, weight.n), np.dtype(np.float32), b.logits, w.head_bias, None)
        kernel = f"decode_store<{self._t}, float"
        for i in range(0, count, DECODE_ROWS):
            logits = b.logits[i : i + DECODE_ROWS]
            store = [np.int32(weight.n), np.int32(weight.span), w.head_bias, None, logits]
            x = b.x
            if not isinstance(x, Stream):
                self._expect_norm("norm_head", x, w.norm, weight)
                x = b.h[: len(logits)]
                self.rms_norm(b.x, w.norm, c.eps, x, rows=s.last[i : i + DECODE_ROWS])
            self._decode("norm_head", kernel, weight, x, store, c.eps)

    # -- checks and launches ------------------------------------------------------------------------------------

    def _expect_norm(self, op: str, x: Any, norm: Any, weight: PackedWeight) -> None:
        expect(op, "x", x, np.float32, (len(x), weight.k))
        expect(op, "norm weight", norm, np.float32, (weight.k,))

    def _check_stream(self, op: str, out: Stream, width: int, norm: Any) -> None:
        expect(op, "out", out.x, np.float32, (len(out), width))
        expect(op, "norm weight", norm, np.float32, (width,))

    def _normed(
        self, op: str, kind: str, c: Any, weight: PackedWeight, x: Any, norm: Any, h: Any, tail: list, prompt: list
    ) -> None:
        """A fused product of normalised rows: of the stream as its writer left it, or of x, by a kernel of its own.

        tail, prompt: the last arguments of the decode kernel, and of the prefill kernel."""
        if not isinstance(x, Stream):
            self._expect_norm(op, x, norm, weight)
            self.rms_norm(x, norm, c.eps, h)
            x = h
        if len(x) > DECODE_ROWS:
            self._prefill(f"prefill_{kind}<{self._t}", weight, x, prompt)
        else:
            self._decode(op, f"decode_{kind}<{self._t}", weight, x, tail, c.eps)

    def _shape(self, weight: PackedWeight) -> DecodeShape:
        return self.shapes.decode(weight.n, weight.k, self.dtype.itemsize)

    def _shared(self, staged: bool, weight: PackedWeight, rows: int) -> int:
        """Bytes of dynamic shared memory of a decode kernel."""
        return self._shape(weight).reduction(rows) + staged * rows * weight.k * self.dtype.itemsize

    def _decode(self, op: str, kernel: str, weight: PackedWeight, x: Any, tail: list, eps: float = 0.0) -> None:
        """A decode kernel of x: rows [R, K] T, an array or handed on, or the residual stream for a product of its norm.

        kernel: name and template arguments up to the source. tail: its arguments behind those of x."""
        rows, when = len(x), COMES if isinstance(x, Handed) else ENDED
        squares = None
        if isinstance(x, Stream):
            x, squares, when = x.h, x.squares, STARTS if x.first else COMES
        data, row, run = laid_out(op, "x", x, self.dtype, (rows, weight.k))
        shape = self._shape(weight)
        launch, limit = shape.launch(rows), shared_limit(self.device.arch) - SCALES
        staged = launch.staged and isinstance(x, Handed) and self._shared(True, weight, rows) <= limit
        shared = self._shared(staged, weight, rows)
        resident = max(1, min(launch.grid, limit // shared))
        grid = min(-(-weight.tiles // launch.tiles), self.device.multiprocessors * resident)
        source = "STAGED" if staged else "DIRECT"
        function = self.device.kernel("linear_decode.cu", f"{kernel}, {source}, {shape.template(rows)}>")
        columns = [data, row, run, squares, np.float32(eps), np.int32(rows), np.int32(weight.k), np.int32(when)]
        args = [weight.data, *columns, *tail]
        self.device.launch(function, (grid,), (shape.warps * 32,), args, shared, dependent=True)

    def _prefill(self, kernel: str, weight: PackedWeight, x: Any, tail: list) -> None:
        size, gpu = self.dtype.itemsize, self.device
        shape = prefill_shape(weight.tiles, len(x), size, gpu.multiprocessors, shared_limit(gpu.arch))
        function = gpu.kernel("linear_prefill.cu", f"{kernel}, {shape.template}>")
        args = [weight.data, x, np.int32(len(x)), np.int32(weight.k), *tail]
        gpu.launch(function, shape.grid(weight.tiles, len(x)), (shape.threads,), args, shape.shared, dependent=True)


def _interleave(layout: str, n: int, head_dim: int) -> tuple[str, int]:
    """The layout and its span; "rows" where heads, or gate and up, do not divide into tiles."""
    if layout not in ("rows", "qkv", "gate_up"):
        raise DeviceError(f'weight: expected layout "rows", "qkv" or "gate_up", found {layout!r}')
    if layout == "qkv" and head_dim % 16 == 0:
        return layout, head_dim // 16
    if layout == "gate_up" and n % 16 == 0:
        return layout, n // 16
    return "rows", 1
