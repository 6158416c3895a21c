"""Backend "cuda": every operation a kernel of this project, matrix products included.

Called by the model through Ops; reaches the GPU only through a Device. This file holds the products (packing, linear,
embed and the fused composites), DeviceOps all the rest. The kernels' side is kernels/packed.cuh, linear_decode.cu
(R <= 16) and linear_prefill.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import DeviceError, UnsupportedModel
from . import tuned
from .base import DECODE_ROWS, Buffers, Cache, Step
from .products import c_type, check_linear, expect
from .rows import DeviceOps
from .shapes import DecodeShape, Shapes, prefill_shape, shared_limit


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
    def _stills(self) -> dict[tuple[int, int], Any]:
        return {}  # Scratch.still by its shape

    @cached_property
    def shapes(self) -> Shapes:
        """The launch shapes of decode products. DeviceError if a tuned file of this device is damaged."""
        return tuned.shapes(self.device)

    @property
    def _t(self) -> str:
        """T as the kernels spell it."""
        return c_type(self.dtype)

    def buffers(self, c, rows, last):
        b = super().buffers(c, rows, last)
        if not c.rope_theta:  # the kernels always rotate: by angles of 0
            shape = c.max_len, c.head_dim
            if shape not in self._stills:
                row = np.repeat(np.array([1, 0], np.float32), c.head_dim // 2)  # cosines, sines
                self._stills[shape] = self.device.upload(np.tile(row, (c.max_len, 1)))
            b.scratch = replace(b.scratch, still=self._stills[shape])
        return b

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

    def embed(self, ids, table, out):
        self.embed_at(ids, table, None, None, out)

    def embed_at(self, ids, table, at, places, out):
        expect("embed", "out", out, np.float32, (len(out), table.k))
        self._embed("embed_packed", table.data, ids, out, at, places)

    def linear(self, x, weight, out, bias=None, residual=None):
        rows = len(x)
        expect("linear", "x", x, self.dtype, (rows, weight.k))
        check_linear("linear", (rows, weight.n), self.dtype, out, bias, residual)
        kind = c_type(out.dtype)
        store = [np.int32(weight.n), np.int32(weight.span), bias, residual, out]
        if rows > DECODE_ROWS:
            self._prefill(f"prefill_store<{self._t}, {kind}", weight, x, store)
            return
        self._decode_plain(f"decode_store<{self._t}, {kind}", weight, x, [None], store)

    def head(self, x, weight, out, bias):
        """Always the decode kernel, up to 16 rows at a time: a row's logits have the same bits in every company."""
        for i in range(0, len(x), DECODE_ROWS):
            self.linear(x[i : i + DECODE_ROWS], weight, out[i : i + DECODE_ROWS], bias=bias)

    # -- composites -----------------------------------------------------------------------------------------------

    def norm_qkv(self, c, w, b, s, cache, rope):
        weight = w.qkv
        if c.qk_norm or weight.layout != "qkv":
            super().norm_qkv(c, w, b, s, cache, rope)  # a head norm needs whole heads, which no thread here holds
            return
        self._expect_norm("norm_qkv", b.x, w.attn_norm, weight)
        expect("norm_qkv", "rope", rope, np.float32, (len(rope), c.head_dim))
        self._normed("qkv", c, weight, w.attn_norm, b, self._qkv_tail("norm_qkv", c, w, b, s, cache, rope))

    def norm_gate_up(self, c, w, b):
        rows, weight = len(b.x), w.gate_up
        if weight.layout != "gate_up":
            super().norm_gate_up(c, w, b)
            return
        self._expect_norm("norm_gate_up", b.x, w.mlp_norm, weight)
        expect("norm_gate_up", "ffn", b.ffn, self.dtype, (rows, weight.n // 2))
        tail = [np.int32(weight.n // 2), b.ffn]
        self._normed("gate", c, weight, w.mlp_norm, b, tail)

    def norm_head(self, c, w, b, s):
        """Always the decode kernel, up to 16 rows at a time: a row's logits have the same bits in every company."""
        weight, count = w.head, len(s.last)
        self._expect_norm("norm_head", b.x, w.norm, weight)
        expect("norm_head", "last", s.last, np.int32, (count,))
        check_linear("norm_head", (count, weight.n), np.dtype(np.float32), b.logits, w.head_bias, None)
        kernel = f"decode_store<{self._t}, float"
        for i in range(0, count, DECODE_ROWS):
            last, logits = s.last[i : i + DECODE_ROWS], b.logits[i : i + DECODE_ROWS]
            rows = len(last)
            tail = [np.int32(weight.n), np.int32(weight.span), w.head_bias, None, logits]
            if norm := self._norm(weight):
                head = [weight.data, b.x, w.norm, np.float32(c.eps), last, np.int32(rows), np.int32(weight.k)]
                self._decode(kernel, norm, weight, rows, [*head, *tail])
            else:
                self.rms_norm(b.x, w.norm, c.eps, b.h[:rows], rows=last)
                self._decode_plain(kernel, weight, b.h[:rows], [None], tail)

    def linear_append(self, c, w, b, s, cache):
        if w.qkv.layout != "qkv":
            super().linear_append(c, w, b, s, cache)
            return
        expect("linear_append", "still", b.scratch.still, np.float32, (c.max_len, c.head_dim))
        self._plain("qkv", w.qkv, b.h, self._qkv_tail("linear_append", c, w, b, s, cache, b.scratch.still))

    def linear_gelu(self, c, w, b):
        rows, weight = len(b.h), w.up
        check_linear("linear_gelu", (rows, weight.n), self.dtype, b.ffn, w.up_bias, None)
        tail = [np.int32(weight.n), w.up_bias, np.int32(c.activation == "gelu_tanh"), b.ffn]
        self._plain("gelu", weight, b.h, tail)

    # -- checks and launches ------------------------------------------------------------------------------------

    def _expect_norm(self, op: str, x: Any, norm: Any, weight: PackedWeight) -> None:
        expect(op, "x", x, np.float32, (len(x), weight.k))
        expect(op, "norm weight", norm, np.float32, (weight.k,))

    def _normed(self, kind: str, c: Any, weight: PackedWeight, norm: Any, b: Buffers, tail: list) -> None:
        """A fused product of the normalised rows of b.x."""
        rows = len(b.x)
        if rows <= DECODE_ROWS and (source := self._norm(weight)):
            head = [weight.data, b.x, norm, np.float32(c.eps), np.int32(rows), np.int32(weight.k)]
            self._decode(f"decode_{kind}<{self._t}", source, weight, rows, [*head, *tail])
            return
        self.rms_norm(b.x, norm, c.eps, b.h)
        self._plain(kind, weight, b.h, tail)

    def _plain(self, kind: str, weight: PackedWeight, x: Any, tail: list) -> None:
        """A fused product of the rows x [R, K] T."""
        expect(kind, "x", x, self.dtype, (len(x), weight.k))
        if len(x) > DECODE_ROWS:
            self._prefill(f"prefill_{kind}<{self._t}", weight, x, tail)
        else:
            self._decode_plain(f"decode_{kind}<{self._t}", weight, x, [], tail)

    def _qkv_tail(self, op: str, c: Any, w: Any, b: Buffers, s: Step, cache: Cache, rope: Any) -> list:
        """What the kernels decode_qkv and prefill_qkv take behind K, checked."""
        self._expect_attention(op, b.qkv, s, cache, c.heads)
        expect(op, "qkv", b.qkv, self.dtype, (len(b.x), w.qkv.n))
        if w.qkv_bias is not None:
            expect(op, "bias", w.qkv_bias, np.float32, (w.qkv.n,))
        sizes = [np.int32(n) for n in (c.heads, c.kv_heads, c.head_dim)]
        places = [s.seqs, s.positions, s.table, np.int32(s.table.shape[1])]
        return [w.qkv_bias, rope, *places, b.qkv, cache.k, cache.v, *sizes]

    def _norm(self, weight: PackedWeight) -> str:
        """How a decode product normalises its rows itself, "" if a kernel of its own does."""
        return self._shape(weight).norm(weight.k, self.dtype.itemsize, shared_limit(self.device.arch))

    def _shape(self, weight: PackedWeight) -> DecodeShape:
        return self.shapes.decode(weight.n, weight.k, self.dtype.itemsize)

    def _shared(self, source: str, weight: PackedWeight, rows: int) -> int:
        return self._shape(weight).shared(rows, weight.k, self.dtype.itemsize, source)

    def _decode_plain(self, kernel: str, weight: PackedWeight, x: Any, index: list, tail: list) -> None:
        """A decode kernel of rows x [R, K] T; index: [None] for kernels that could gather rows."""
        rows = len(x)
        staged = self._shape(weight).launch(rows).staged
        fits = self._shared("STAGED", weight, rows) <= shared_limit(self.device.arch)
        args = [weight.data, x, None, np.float32(0), *index, np.int32(rows), np.int32(weight.k), *tail]
        self._decode(kernel, "STAGED" if staged and fits else "DIRECT", weight, rows, args)

    def _decode(self, kernel: str, source: str, weight: PackedWeight, rows: int, args: list) -> None:
        """kernel: name and template arguments up to the source."""
        shape, gpu = self._shape(weight), self.device
        launch, shared, threads = shape.launch(rows), self._shared(source, weight, rows), (shape.warps * 32,)
        function = gpu.kernel("linear_decode.cu", f"{kernel}, {source}, {shape.template(rows)}>")
        resident = max(1, min(launch.grid, shared_limit(gpu.arch) // shared))
        most = max(1, gpu.multiprocessors * resident // launch.split)
        if launch.split > 1:  # more than are there at once would begin when the first ones end
            most = min(most, gpu.clusters(function, threads, shared, launch.split))
        groups = -(-weight.tiles // (launch.tiles * launch.split))
        grid = (min(groups, most) * launch.split,)
        gpu.launch(function, grid, threads, args, shared, dependent=True, cluster=launch.split)

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
