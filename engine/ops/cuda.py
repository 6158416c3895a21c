"""Backend "cuda": every operation a kernel of this project, matrix products included.

Reaches the GPU only through a Device. This file holds the products (packing, linear,
embed and the fused composites), DeviceOps all the rest. The kernels' side is kernels/packed.cuh, linear_decode.cu
and linear_prefill.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..config import LayerSpec
from ..errors import DeviceError, UnsupportedModel
from ..sizes import DECODE_ROWS
from ..weights.quantised import Quantised
from . import dequantise, tuned
from .base import Buffers, Cache, PassKind, Step, expect_decode
from .device_ops import DeviceOps
from .products import c_type, check_linear, expect
from .scratch import squared_line
from .shapes import PREFILL_THREADS, Shapes, prefill_shape, shared_limit


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


class _Planned(NamedTuple):
    """How one decode kernel is launched for one matrix and number of rows."""

    function: Any
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int  # bytes of shared memory of a block
    cluster: int


class CudaOps(DeviceOps):
    """Products of packed weights by mma.sync, fused with RoPE, SiLU, or residual and half of a norm."""

    name = "cuda"

    @cached_property
    def shapes(self) -> Shapes:
        """The launch shapes of decode products. DeviceError if a tuned file of this device is damaged."""
        return tuned.shapes(self.device)

    @cached_property
    def _t(self) -> str:
        """T as the kernels spell it."""
        return c_type(self.dtype)

    # -- weights --------------------------------------------------------------------------------------------------

    def weight(self, parts: Sequence[Any], layout: str = "rows", head_dim: int = 0) -> PackedWeight:
        """Packs part by part, so that beside the packed matrix only one plain part is on the device.

        parts: arrays [rows, K] of the host, or of the device in T, or quantised matrices. UnsupportedModel if K is not
        a multiple of 16."""
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
        if isinstance(part, Quantised):
            plain = self.device.empty(part.shape, self.dtype)
            for at, piece in dequantise.pieces(part, self.dtype):
                self.device.write(plain[at : at + len(piece)], piece)
            return plain
        expect("weight", "part", part, self.dtype, part.shape)
        return part

    # -- primitives -----------------------------------------------------------------------------------------------

    def embed(self, ids, table, out, scale=1.0):
        self._look_up(ids, table, out, scale, None, None)

    def embed_at(self, ids, table, at, places, out):
        self._look_up(ids, table, out, 1.0, at, places)

    def _look_up(self, ids, table, out, scale, at, places):
        expect("embed", "out", out, np.float32, (len(out), table.k))
        self._embed("embed_packed", table.data, ids, out, scale, at, places, None, None, None)

    def linear(self, x, weight, out, kind, bias=None, residual=None, scale=1.0):
        check_linear("linear", (len(x), weight.n), self.dtype, out, bias, residual)
        tail = _store(weight, out, bias, residual, scale)
        self._product("linear", f"store<{self._t}, {c_type(out.dtype)}", weight, x, kind, tail)

    def head(self, x, weight, out, bias, scale=1.0):
        for i in range(0, len(x), DECODE_ROWS):
            super().head(x[i : i + DECODE_ROWS], weight, out[i : i + DECODE_ROWS], bias, scale)

    # -- composites -----------------------------------------------------------------------------------------------

    def embed_tokens(self, s, table, b, norm, scale=1.0):
        if s.kind.tiled:
            self.embed(s.ids, table, b.x, scale)
            return
        expect("embed_tokens", "x", b.x, np.float32, (len(b.x), table.k))
        half = self._half_norm("embed_tokens", b, norm)
        self._embed("embed_packed", table.data, s.ids, b.x, scale, None, None, *half)

    def linear_add(self, x, weight, b, s, norm, scale=1.0):
        rows = len(x)
        if s.kind.tiled:
            super().linear_add(x, weight, b, s, norm, scale)
            return
        expect("linear_add", "x", x, self.dtype, (rows, weight.k))
        check_linear("linear_add", (rows, weight.n), self.dtype, b.x, None, None)
        if weight.n % 16 or weight.span != 1:
            raise DeviceError(f'linear_add: expected a weight of a multiple of 16 rows in layout "rows", '
                              f'found {weight.n} in "{weight.layout}"')  # fmt: skip
        half = self._half_norm("linear_add", b, norm)
        self._decode(f"decode_add<{self._t}", weight, x, [np.int32(weight.n), np.float32(scale), b.x, *half])

    def norm_qkv(self, c, spec, w, b, s, cache):
        weight = w.qkv
        tail = self._qkv_tail("norm_qkv", spec, w, b, s, cache)
        if weight.layout == "qkv" and not spec.qk_norm:
            self._normed("norm_qkv", f"qkv<{self._t}", c, weight, w.attn_norm, b, s, tail)
            return
        tail = _store(weight, b.qkv, w.qkv_bias)
        self._normed("norm_qkv", f"store<{self._t}, {self._t}", c, weight, w.attn_norm, b, s, tail)
        if spec.qk_norm:  # of whole heads, which no thread of a product holds
            self.head_norm(b.qkv, w.q_norm, w.k_norm, c.eps, spec.heads, spec.kv_heads)
        self.rope_append(b.qkv, w.rope, s, cache, spec.heads)

    def norm_gate_up(self, c, w, b, s):
        rows, weight = len(b.x), w.gate_up
        expect("norm_gate_up", "ffn", b.ffn, self.dtype, (rows, weight.n // 2))
        if weight.layout == "gate_up":
            tail = [np.int32(weight.n // 2), b.ffn]
            self._normed("norm_gate_up", f"gate<{self._t}", c, weight, w.mlp_norm, b, s, tail)
            return
        expect("norm_gate_up", "gate_up", b.gate_up, self.dtype, (rows, weight.n))
        tail = _store(weight, b.gate_up)
        self._normed("norm_gate_up", f"store<{self._t}, {self._t}", c, weight, w.mlp_norm, b, s, tail)
        self.silu_mul(b.gate_up, b.ffn)

    def norm_head(self, c, w, b, s):
        rows, weight, count = len(b.x), w.head, len(s.last)
        if s.kind.tiled:
            super().norm_head(c, w, b, s)
            return
        expect("norm_head", "last", s.last, np.int32, (rows,))
        check_linear("norm_head", (count, weight.n), np.dtype(np.float32), b.logits, w.head_bias, None)
        tail = _store(weight, b.logits, w.head_bias, scale=c.logit_scale)
        self._normed("norm_head", f"store<{self._t}, float", c, weight, w.norm, b, s, tail)

    def linear_append(self, spec, w, b, s, cache):
        """The kernel of models with rotary positions: w.rope has angles of 0."""
        if w.qkv.layout != "qkv":
            super().linear_append(spec, w, b, s, cache)
            return
        tail = self._qkv_tail("linear_append", spec, w, b, s, cache)
        self._product("linear_append", f"qkv<{self._t}", w.qkv, b.h, s.kind, tail)

    def linear_gelu(self, spec, w, b, s):
        rows, weight = len(b.h), w.up
        check_linear("linear_gelu", (rows, weight.n), self.dtype, b.ffn, w.up_bias, None)
        tail = [np.int32(weight.n), w.up_bias, np.int32(spec.activation == "gelu_tanh"), b.ffn]
        self._product("linear_gelu", f"gelu<{self._t}", weight, b.h, s.kind, tail)

    # -- checks and launches ------------------------------------------------------------------------------------

    def _half_norm(self, op: str, b: Buffers, norm: Any) -> list:
        """Where the first half of the next norm goes, checked: what embed_packed and decode_add take last."""
        rows, k = b.x.shape
        expect(op, "norm weight", norm, np.float32, (k,))
        expect(op, "h", b.h, self.dtype, (rows, k))
        return [norm, b.h, self._squared(op, b)]

    def _squared(self, op: str, b: Buffers) -> Any:
        most = len(b.scratch.squared)
        if len(b.x) > most:
            raise DeviceError(f"{op}: expected at most {most} rows, as the buffers were made for, found {len(b.x)}")
        expect(op, "scratch.squared", b.scratch.squared, np.float32, (most, squared_line(b.x.shape[1])))
        return b.scratch.squared

    def _normed(
        self, op: str, kernel: str, c: Any, weight: PackedWeight, norm: Any, b: Buffers, s: Step, tail: list
    ) -> None:
        """A product of the normalised rows of b.x. In a decode step who wrote b.x has done half of the norm."""
        expect(op, "x", b.x, np.float32, (len(b.x), weight.k))
        expect(op, "norm weight", norm, np.float32, (weight.k,))
        if s.kind.tiled:
            self.rms_norm(b.x, norm, c.eps, b.h)
            self._product(op, kernel, weight, b.h, s.kind, tail)
        else:
            expect(op, "h", b.h, self.dtype, b.x.shape)
            self._decode(f"decode_{kernel}", weight, b.h, tail, self._squared(op, b), c.eps)

    def _product(self, op: str, kernel: str, weight: PackedWeight, x: Any, kind: PassKind, tail: list) -> None:
        """A product of the rows x [R, K] T. kernel: "qkv<bf16", what follows "decode_" or "prefill_"."""
        expect(op, "x", x, self.dtype, (len(x), weight.k))
        if kind.tiled:
            self._prefill(f"prefill_{kernel}", weight, x, tail)
        else:
            self._decode(f"decode_{kernel}", weight, x, tail)

    def _qkv_tail(self, op: str, spec: LayerSpec, w: Any, b: Buffers, s: Step, cache: Cache) -> list:
        """What the kernels decode_qkv and prefill_qkv take behind K, checked."""
        self._expect_attention(op, b.qkv, s, cache, spec.heads)
        expect(op, "rope", w.rope, np.float32, (len(w.rope), spec.head_dim))
        expect(op, "qkv", b.qkv, self.dtype, (len(b.x), w.qkv.n))
        if w.qkv_bias is not None:
            expect(op, "bias", w.qkv_bias, np.float32, (w.qkv.n,))
        sizes = [np.int32(n) for n in (spec.heads, spec.kv_heads, spec.head_dim)]
        places = [s.seqs, s.positions, s.table, np.int32(s.table.shape[1])]
        return [w.qkv_bias, w.rope, *places, b.qkv, cache.k, cache.v, *sizes]

    def _decode(self, kernel: str, weight: PackedWeight, x: Any, tail: list, squared: Any = None, eps: float = 0):
        """A decode kernel, named up to T, of rows x [R, K] T; with `squared` rows after the first half of a norm."""
        rows, plans = len(x), self.shapes.plans
        key = kernel, weight.n, weight.k, rows
        plan = plans.get(key) or plans.setdefault(key, self._plan(kernel, weight, rows))
        args = [weight.data, x, squared, np.float32(eps), np.int32(rows), np.int32(weight.k), *tail]
        function, grid, block, shared, cluster = plan
        self.device.launch(function, grid, block, args, shared, dependent=True, cluster=cluster)

    def _plan(self, kernel: str, weight: PackedWeight, rows: int) -> _Planned:
        """How a decode kernel is launched for `rows` rows: worked out once."""
        expect_decode(kernel, rows)
        gpu, size = self.device, self.dtype.itemsize
        shape, limit = self.shapes.decode(weight.n, weight.k, size), shared_limit(gpu.arch)
        source, shared = shape.source(rows, weight.k, size, limit)
        launch, block = shape.launch(rows), (shape.threads(rows),)
        function = gpu.kernel("linear_decode.cu", f"{kernel}, {source}, {shape.template(rows)}>")
        resident = max(1, min(launch.grid, limit // shared))
        most = max(1, gpu.multiprocessors * resident // launch.split)
        if launch.split > 1:  # more than are there at once would begin when the first ones end
            most = min(most, gpu.clusters(function, block, shared, launch.split))
        groups = -(-weight.tiles // (launch.tiles * launch.split))
        grid = (groups if launch.once else min(groups, most) * launch.split,)
        return _Planned(function, grid, block, shared, launch.split)

    def _prefill(self, kernel: str, weight: PackedWeight, x: Any, tail: list) -> None:
        size, gpu = self.dtype.itemsize, self.device
        shape = prefill_shape(weight.tiles, len(x), size, gpu.multiprocessors, shared_limit(gpu.arch))
        function = gpu.kernel("linear_prefill.cu", f"{kernel}, {shape.template}>")
        args = [weight.data, x, np.int32(len(x)), np.int32(weight.k), *tail]
        gpu.launch(function, shape.grid(weight.tiles, len(x)), (PREFILL_THREADS,), args, shape.shared, dependent=True)


def _store(weight: PackedWeight, out: Any, bias: Any = None, residual: Any = None, scale: float = 1.0) -> list:
    """What the kernels decode_store and prefill_store take behind K."""
    return [np.int32(weight.n), np.int32(weight.span), np.float32(scale), bias, residual, out]


def _interleave(layout: str, n: int, head_dim: int) -> tuple[str, int]:
    """The layout and its span; "rows" where heads, or gate and up, do not divide into tiles."""
    if layout not in ("rows", "qkv", "gate_up"):
        raise DeviceError(f'weight: expected layout "rows", "qkv" or "gate_up", found {layout!r}')
    if layout == "qkv" and head_dim % 16 == 0:
        return layout, head_dim // 16
    if layout == "gate_up" and n % 16 == 0:
        return layout, n // 16
    return "rows", 1
