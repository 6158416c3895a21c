"""Backend "cuda": every operation a kernel of this project, matrix products included.

Reaches the GPU only through a Device. This file holds the products (linear, embed and the fused composites),
packing.py how weights are kept, DeviceOps all the rest. The kernels' side is kernels/packed.cuh, quantised.cuh,
linear_decode.cu and linear_prefill.cu.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..config import LayerSpec
from ..errors import DeviceError
from ..models.weights import Weights
from ..sizes import DECODE_ROWS
from ..weights.quantised import Quantised
from . import tuned
from .base import Buffers, Cache, PassKind, Step, expect_decode
from .device import Device
from .device_ops import DeviceOps
from .formats import QuantisedForm
from .packing import PackedWeight, Packer, Segment
from .products import c_type, check_linear, expect
from .scratch import squared_line
from .shapes import PREFILL_THREADS, Shapes, prefill_shape, shared_limit

AHEAD = 24 << 10  # bytes a multiprocessor of the weights that come next


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
    unpacks = True
    _shapes: Shapes | None = None

    def __init__(self, device: Device, dtype: Any) -> None:
        super().__init__(device, dtype)
        self._packer = Packer(device, self.dtype)
        self._plans: dict[tuple, _Planned] = {}  # launches that follow from the shapes
        self._following: dict[int, PackedWeight] = {}  # id of a matrix -> the one that a decode step needs next

    @property
    def shapes(self) -> Shapes:
        """The launch shapes of decode products. DeviceError if a tuned file of this device is damaged."""
        if (found := self._shapes) is None:
            found = self.shapes = tuned.shapes(self.device)
        return found

    @shapes.setter
    def shapes(self, shapes: Shapes) -> None:
        self._shapes, self._plans = shapes, {}

    @cached_property
    def _t(self) -> str:
        """T as the kernels spell it."""
        return c_type(self.dtype)

    # -- weights --------------------------------------------------------------------------------------------------

    def weight(self, parts: Sequence[Any], layout: str = "rows", head_dim: int = 0) -> PackedWeight:
        """Packs part by part, so that beside the packed matrix only one plain part is on the device.

        parts: arrays [rows, K] of the host, or of the device in T, or quantised matrices. UnsupportedModel if K is not
        a multiple of 16."""
        return self._packer.pack(parts, layout, head_dim)

    def keeps(self, parts: Sequence[Quantised | None], layout: str = "rows", head_dim: int = 0) -> bool:
        return self._packer.keeps(parts, layout, head_dim)

    @property
    def workspace(self) -> Any:
        return self._packer.unpacked

    def loaded(self, w: Weights) -> None:
        """Makes room to unpack the matrices of layers: not in a pass, which may be captured. The head, and the table of
        the embedding, are never multiplied by many rows."""
        for layer in w.layers:
            for weight in (layer.qkv, layer.o, layer.gate_up, layer.up, layer.down):
                if weight is not None and weight.stored_bytes:
                    self._packer.room(weight)
        if not w.layers or not isinstance(w.head, PackedWeight):
            return
        order = [m for layer in w.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down)] + [w.head]
        self._following = {id(m): after for m, after in zip(order, order[1:] + order[:1], strict=True)}

    # -- primitives -----------------------------------------------------------------------------------------------

    def embed(self, ids, table, out, scale=1.0):
        self._look_up(ids, table, out, scale, None, None)

    def embed_at(self, ids, table, at, places, out):
        self._look_up(ids, table, out, 1.0, at, places)

    def _look_up(self, ids, table, out, scale, at, places):
        expect("embed", "out", out, np.float32, (len(out), table.k))
        self._embed(_lookup(table, self._t), table.segments[0].data, ids, out, scale, at, places, None, None, None)

    def linear(self, x, weight, out, kind, bias=None, residual=None, scale=1.0):
        check_linear("linear", (len(x), weight.n), self.dtype, out, bias, residual)
        tail = _store(weight, out, bias, residual, scale)
        self._product("linear", "store", weight, x, kind, tail, c_type(out.dtype))

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
        self._embed(_lookup(table, self._t), table.segments[0].data, s.ids, b.x, scale, None, None, *half)

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
        self._decode("add", weight, x, [np.int32(weight.n), np.float32(scale), b.x, *half])

    def norm_qkv(self, c, spec, w, b, s, cache):
        weight = w.qkv
        tail = self._qkv_tail("norm_qkv", spec, w, b, s, cache)
        if weight.layout == "qkv" and not spec.qk_norm:
            self._normed("norm_qkv", "qkv", c, weight, w.attn_norm, b, s, tail)
            return
        tail = _store(weight, b.qkv, w.qkv_bias)
        self._normed("norm_qkv", "store", c, weight, w.attn_norm, b, s, tail, self._t)
        if spec.qk_norm:  # of whole heads, which no thread of a product holds
            self.head_norm(b.qkv, w.q_norm, w.k_norm, c.eps, spec.heads, spec.kv_heads)
        self.rope_append(b.qkv, w.rope, s, cache, spec.heads)

    def norm_gate_up(self, c, w, b, s):
        rows, weight = len(b.x), w.gate_up
        expect("norm_gate_up", "ffn", b.ffn, self.dtype, (rows, weight.n // 2))
        if weight.layout == "gate_up":
            tail = [np.int32(weight.n // 2), b.ffn]
            self._normed("norm_gate_up", "gate", c, weight, w.mlp_norm, b, s, tail)
            return
        expect("norm_gate_up", "gate_up", b.gate_up, self.dtype, (rows, weight.n))
        tail = _store(weight, b.gate_up)
        self._normed("norm_gate_up", "store", c, weight, w.mlp_norm, b, s, tail, self._t)
        self.silu_mul(b.gate_up, b.ffn)

    def norm_head(self, c, w, b, s):
        rows, weight, count = len(b.x), w.head, len(s.last)
        if s.kind.tiled:
            super().norm_head(c, w, b, s)
            return
        expect("norm_head", "last", s.last, np.int32, (rows,))
        check_linear("norm_head", (count, weight.n), np.dtype(np.float32), b.logits, w.head_bias, None)
        tail = _store(weight, b.logits, w.head_bias, scale=c.logit_scale)
        self._normed("norm_head", "store", c, weight, w.norm, b, s, tail, "float")

    def linear_append(self, spec, w, b, s, cache):
        """The kernel of models with rotary positions: w.rope has angles of 0."""
        if w.qkv.layout != "qkv":
            super().linear_append(spec, w, b, s, cache)
            return
        tail = self._qkv_tail("linear_append", spec, w, b, s, cache)
        self._product("linear_append", "qkv", w.qkv, b.h, s.kind, tail)

    def linear_gelu(self, spec, w, b, s):
        rows, weight = len(b.h), w.up
        check_linear("linear_gelu", (rows, weight.n), self.dtype, b.ffn, w.up_bias, None)
        tail = [np.int32(weight.n), w.up_bias, np.int32(spec.activation == "gelu_tanh"), b.ffn]
        self._product("linear_gelu", "gelu", weight, b.h, s.kind, tail)

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
        self, op: str, kernel: str, c: Any, weight: PackedWeight, norm: Any, b: Buffers, s: Step, tail: list,
        out: str = "",
    ) -> None:  # fmt: skip
        """A product of the normalised rows of b.x. In a decode step who wrote b.x has done half of the norm."""
        expect(op, "x", b.x, np.float32, (len(b.x), weight.k))
        expect(op, "norm weight", norm, np.float32, (weight.k,))
        if s.kind.tiled:
            self.rms_norm(b.x, norm, c.eps, b.h)
            self._product(op, kernel, weight, b.h, s.kind, tail, out)
        else:
            expect(op, "h", b.h, self.dtype, b.x.shape)
            self._decode(kernel, weight, b.h, tail, out, self._squared(op, b), c.eps)

    def _product(
        self, op: str, kernel: str, weight: PackedWeight, x: Any, kind: PassKind, tail: list, out: str = ""
    ) -> None:
        """A product of the rows x [R, K] T. kernel: "qkv", what follows "decode_" or "prefill_"; out: its Out."""
        expect(op, "x", x, self.dtype, (len(x), weight.k))
        if kind.tiled:
            self._prefill(kernel, weight, x, tail, out)
        else:
            self._decode(kernel, weight, x, tail, out)

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

    def _decode(
        self, kernel: str, weight: PackedWeight, x: Any, tail: list, out: str = "", squared: Any = None, eps: float = 0
    ) -> None:
        """A decode kernel of rows x [R, K] T; with `squared` rows after the first half of a norm."""
        rows, plans = len(x), self._plans
        for part in weight.segments:
            key = kernel, out, part.form, part.tiles, weight.k, rows
            plan = plans.get(key) or plans.setdefault(key, self._plan(kernel, out, weight, part, rows))
            function, grid, block, shared, cluster = plan
            sizes = [np.int32(v) for v in (rows, weight.k, part.tiles, part.first)]
            args = [part.data, x, squared, np.float32(eps), *sizes, *self._ahead(weight, part, grid[0]), *tail]
            self.device.launch(function, grid, block, args, shared, dependent=True, cluster=cluster)

    def _ahead(self, weight: PackedWeight, part: Segment, blocks: int) -> tuple[Any, np.int32]:
        """What the kernel brings to L2 for the one after it, and each block's share in bytes."""
        after = self._following.get(id(weight))
        if not after or not isinstance(part.form, QuantisedForm) or part is not weight.segments[-1]:
            return None, np.int32(0)
        data = after.segments[0].data
        return data, np.int32(min(AHEAD * self.device.multiprocessors, data.nbytes) // blocks // 128 * 128)

    def _plan(self, kernel: str, out: str, weight: PackedWeight, part: Segment, rows: int) -> _Planned:
        """How a decode kernel is launched for `rows` rows: worked out once."""
        expect_decode(f"decode_{kernel}", rows)
        gpu, limit = self.device, shared_limit(self.device.arch)
        n = weight.n if len(weight.segments) == 1 else part.tiles * 16
        shape = self.shapes.decode(n, weight.k, part.form.key)
        source, shared = shape.source(rows, weight.k, part.form.key, limit)
        launch, block = shape.launch(rows), (shape.threads(rows),)
        types = ", ".join(filter(None, (part.form.spelled(self._t), out, source, shape.template(rows))))
        function = gpu.kernel("linear_decode.cu", f"decode_{kernel}<{types}>")
        resident = max(1, min(launch.grid, limit // shared))
        most = max(1, gpu.multiprocessors * resident // launch.split)
        if launch.split > 1:  # more than are there at once would begin when the first ones end
            most = min(most, gpu.clusters(function, block, shared, launch.split))
        groups = -(-part.tiles // (launch.tiles * launch.split))
        grid = (groups if launch.once else min(groups, most) * launch.split,)
        return _Planned(function, grid, block, shared, launch.split)

    def _prefill(self, kernel: str, weight: PackedWeight, x: Any, tail: list, out: str) -> None:
        size, gpu = self.dtype.itemsize, self.device
        data, constant = self._plain(weight)
        shape = prefill_shape(weight.tiles, len(x), size, gpu.multiprocessors, shared_limit(gpu.arch))
        types = ", ".join(filter(None, (self._t, out, shape.template)))
        function = gpu.kernel("linear_prefill.cu", f"prefill_{kernel}<{types}>")
        args = [data, x, np.int32(len(x)), np.int32(weight.k), *tail]
        grid = shape.grid(weight.tiles, len(x))
        gpu.launch(function, grid, (PREFILL_THREADS,), args, shape.shared, dependent=constant)

    def _plain(self, weight: PackedWeight) -> tuple[Any, bool]:
        """The matrix as plain numbers of T, and whether they were there before this pass: a kernel that reads weights
        before it waits must not start while these are being unpacked."""
        if not isinstance(weight.segments[0].form, QuantisedForm):
            return weight.segments[0].data, True
        plain, k = self._packer.room(weight), weight.k
        for part in weight.segments:
            to = plain[part.first * 16 * k : (part.first + part.tiles) * 16 * k]
            function = self.device.kernel("pack.cu", f"unpack<{part.form.spelled(self._t)}>")
            threads = part.tiles * k * 2
            args = [part.data, to, np.int32(part.tiles), np.int32(k)]
            self.device.launch(function, (-(-threads // 256),), (256,), args)
        return plain, False


def _lookup(table: PackedWeight, t: str) -> str:
    """The kernel that looks up rows of a table."""
    return f"embed_packed<{table.segments[0].form.spelled(t)}>"


def _store(weight: PackedWeight, out: Any, bias: Any = None, residual: Any = None, scale: float = 1.0) -> list:
    """What the kernels decode_store and prefill_store take behind K."""
    return [np.int32(weight.n), np.int32(weight.span), np.float32(scale), bias, residual, out]
