"""All GPU operations but the GEMMs: norms, RoPE, attention, SiLU, sampling, advance.

DeviceOps is the base of the backends cuda and cublas, which add weight, embed and linear. It checks arguments, chooses
grids, and launches kernels/norm.cu, rope.cu, elementwise.cu, attend_decode.cu, attend_prefill.cu, pages.cu and
sample.cu through a Device. All launches except those of pages.cu use programmatic dependent launch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..errors import DeviceError, UnsupportedModel
from ..sizes import MAIL, MAX_BATCH, PAGE
from .attend_shapes import HEAD_SIZES, PACKED_HEAD, DecodeTile, attend_blocks, prefill_shared
from .base import Array, Cache, Ops, PassKind, Sampling, Step, expect_decode
from .device import Device
from .products import address, c_type, expect
from .sampling import RULES
from .scratch import Scratch

SAMPLED = 2048  # minimum number of logits per block of the kernel sample
WIDEST = 48 * 1024  # maximum bytes of a row that layer_norm keeps in shared memory

I32, F32 = np.dtype(np.int32), np.dtype(np.float32)


class DeviceOps(Ops):
    """GPU operations that are not GEMMs. T is bfloat16, float16 or float32; all sums are float32."""

    def __init__(self, device: Device, dtype: Any) -> None:
        """dtype: the storage type T of weights, activations and KV cache."""
        self.device, self.dtype = device, np.dtype(dtype)

    def scratch(self, c, kind, rows, last):
        """UnsupportedModel if no attention kernel supports the head size."""
        d = c.sizes.head_dim
        if d not in HEAD_SIZES:
            raise UnsupportedModel(f"backend {self.name}: expected head_dim to be one of {HEAD_SIZES}, found {d}")
        if not c.causal and d > PACKED_HEAD:
            expected = f"backend {self.name}: expected an encoder's head_dim to be at most {PACKED_HEAD}"
            raise UnsupportedModel(f"{expected}, found {d}")
        return Scratch.of(self.device, self.dtype.itemsize, c, kind, rows, last)

    def _embed(self, kernel: str, table: Array, ids: Array, out: Array, scale: float, at: Any, places: Any, *more: Any):
        """Look up rows of a table with `kernel` of pack.cu, times scale; with `at` also add row at[r] of `places`."""
        rows, k = out.shape
        expect("embed", "ids", ids, I32, (rows,))
        expect("embed", "out", out, F32, (rows, k))
        if at is not None and places is not None:
            expect("embed", "at", at, I32, (rows,))
            expect("embed", "places", places, F32, (len(places), k))
        grid = (rows, -(-k // 512))  # four elements per thread; a loop over the row would take as long as a layer
        self._launch("pack.cu", kernel, grid, 128, ids, table, at, places, out, np.int32(k), np.float32(scale), *more)

    # -- norms and elementwise operations -----------------------------------------------------------------------------

    def rms_norm(self, x, weight, eps, out, rows=None):
        width = x.shape[-1]
        expect("rms_norm", "x", x, F32, (len(x) if rows is not None else len(out), width))
        expect("rms_norm", "weight", weight, F32, (width,))
        expect("rms_norm", "out", out, self.dtype, (len(out), width))
        if rows is not None:
            expect("rms_norm", "rows", rows, I32, (len(out),))
        quads = width % 4 == 0
        name, sizes = f"rms_norm<{c_type(self.dtype)}, {str(quads).lower()}>", (np.int32(width), np.float32(eps))
        self._launch("norm.cu", name, (len(out),), 256, x, weight, rows, out, *sizes)

    def layer_norm(self, x, weight, bias, eps, out, rows=None, keep=None):
        width = x.shape[-1]
        expect("layer_norm", "x", x, F32, (len(x) if rows is not None else len(out), width))
        expect("layer_norm", "weight", weight, F32, (width,))
        expect("layer_norm", "bias", bias, F32, (width,))
        expect("layer_norm", "out", out, self.dtype, (len(out), width))
        if rows is not None:
            expect("layer_norm", "rows", rows, I32, (len(out),))
        if keep is not None:
            expect("layer_norm", "keep", keep, F32, (len(out), width))
        if width % 4 or 4 * width > WIDEST:
            raise DeviceError(f"layer_norm: expected rows of a multiple of 4 and at most {WIDEST // 4} elements, "
                              f"found {width}")  # fmt: skip
        if rows is not None and keep is not None and address(keep) == address(x):
            raise DeviceError("layer_norm: expected keep to be another array than x where rows are chosen")
        arrays, sizes = (x, weight, bias, rows, out, keep), (np.int32(width), np.float32(eps))
        name = f"layer_norm<{c_type(self.dtype)}>"
        self._launch("norm.cu", name, (len(out),), 256, *arrays, *sizes, shared=4 * width)

    def head_norm(self, qkv, q_weight, k_weight, eps, heads, kv_heads):
        rows, d = len(qkv), len(q_weight)
        expect("head_norm", "qkv", qkv, self.dtype, (rows, (heads + 2 * kv_heads) * d))
        expect("head_norm", "q_weight", q_weight, F32, (d,))
        expect("head_norm", "k_weight", k_weight, F32, (d,))
        if d > 256:
            raise DeviceError(f"head_norm: expected heads of at most 256 elements, found {d}")
        sizes = [np.int32(v) for v in (rows, heads, kv_heads, d)]
        blocks = -(-rows * (heads + kv_heads) // 8)
        name = f"head_norm<{c_type(self.dtype)}>"
        self._launch("norm.cu", name, (blocks,), 256, qkv, q_weight, k_weight, *sizes, np.float32(eps))

    def silu_mul(self, gate_up, out):
        rows, width = out.shape
        expect("silu_mul", "gate_up", gate_up, self.dtype, (rows, 2 * width))
        expect("silu_mul", "out", out, self.dtype, (rows, width))
        vec = 1 if width % 8 else 8
        grid = (-(-width // (vec * 256)), rows)
        self._launch(
            "elementwise.cu", f"silu_mul<{c_type(self.dtype)}, {vec}>", grid, 256, gate_up, out, np.int32(width)
        )

    def gelu(self, x, tanh, out):
        expect("gelu", "x", x, self.dtype, x.shape)
        expect("gelu", "out", out, self.dtype, x.shape)
        count = math.prod(x.shape)
        vec = 1 if count % 8 else 8
        name = f"gelu<{c_type(self.dtype)}, {vec}>"
        self._launch("elementwise.cu", name, (-(-count // (vec * 256)),), 256, x, out, np.int32(count), np.int32(tanh))

    def advance(self, s, tokens, mail):
        rows = len(tokens)
        self._expect_step("advance", s, rows)
        expect("advance", "tokens", tokens, I32, (rows,))
        expect("advance", "mail.box", mail.box, I32, (rows, MAIL))
        expect("advance", "mail.place", mail.place, I32, (rows,))
        if rows > MAX_BATCH:
            raise DeviceError(f"advance: expected at most {MAX_BATCH} rows, found {rows}")
        arrays = (tokens, s.seqs, s.ids, s.positions, s.visible, mail.place, mail.box)
        self._launch("elementwise.cu", "advance", (1,), 256, *arrays, np.int32(rows), np.int32(len(s.table) - 1))

    def pool(self, x, first, count, out):
        texts, width = out.shape
        expect("pool", "x", x, F32, (len(x), width))
        expect("pool", "first", first, I32, (texts,))
        expect("pool", "count", count, I32, (texts,))
        expect("pool", "out", out, F32, (texts, width))
        grid = (-(-width // 32), texts)
        self._launch("pool.cu", "pool", grid, 256, x, first, count, out, np.int32(width))

    # -- positions and attention --------------------------------------------------------------------------------------

    def rope_append(self, qkv, rope, s, cache, heads):
        rows, kv_heads, d = self._expect_attention("rope_append", qkv, s, cache, heads)
        expect("rope_append", "rope", rope, F32, (len(rope), d))
        sizes = [np.int32(v) for v in (rows, heads, kv_heads, d, s.table.shape[1])]
        blocks = -(-rows * (heads + 2 * kv_heads) * (d // 16) // 256)
        arrays = (qkv, rope, s.seqs, s.positions, s.table, cache.k, cache.v)
        self._launch("rope.cu", f"rope_append<{c_type(self.dtype)}>", (blocks,), 256, *arrays, *sizes)

    def append(self, qkv, s, cache, heads):
        rows, kv_heads, d = self._expect_attention("append", qkv, s, cache, heads)
        sizes = [np.int32(v) for v in (rows, heads, kv_heads, d, s.table.shape[1])]
        blocks = -(-rows * 2 * kv_heads * (d // 8) // 256)
        arrays = (qkv, s.seqs, s.positions, s.table, cache.k, cache.v)
        self._launch("rope.cu", f"append<{c_type(self.dtype)}>", (blocks,), 256, *arrays, *sizes)

    def attend(self, qkv, s, cache, heads, window, out, scratch, scale=None):
        rows, kv_heads, d = self._expect_attention("attend", qkv, s, cache, heads)
        expect("attend", "out", out, self.dtype, (rows, heads * d))
        if window < 0:
            raise DeviceError(f"attend: expected a window of 0 (off) or more tokens, found {window}")
        scale = np.float32(math.log2(math.e) / math.sqrt(d) if scale is None else math.log2(math.e) * scale)
        if s.kind.tiled:
            if rows % PAGE:
                raise DeviceError(f"attend: expected a multiple of {PAGE} rows in a {s.kind.value} pass, found {rows}")
            packed = s.kind is PassKind.ENCODER
            sizes = [np.int32(v) for v in (heads, kv_heads, s.table.shape[1], window, len(s.table) - 1)]
            arrays = (qkv, s.seqs, s.visible, s.table, cache.k, cache.v, out)
            shared = prefill_shared(self.dtype.itemsize, d)
            if packed and d > PACKED_HEAD:
                raise DeviceError(f"attend: expected packed heads of at most {PACKED_HEAD} elements, found {d}")
            name = f"attend_prefill<{c_type(self.dtype)}, {d}, {str(packed).lower()}>"
            self._launch("attend_prefill.cu", name, (rows // PAGE, heads), 128, *arrays, *sizes, scale, shared=shared)
            return
        expect_decode("attend", rows)
        tile = DecodeTile.of(self.dtype.itemsize, d, heads // kv_heads)
        splits, units = tile.splits(s.table.shape[1] * PAGE), kv_heads * tile.chunks
        if scratch.splits < splits or len(scratch.arrived) < rows * units:
            found = f"{len(scratch.arrived) // units} rows in {scratch.splits} splits"
            raise DeviceError(f"attend: expected scratch for {rows} rows in {splits} splits, found it for {found}")
        # At most one block per SM: blocks without a split also wait, and would occupy SMs that others need.
        grid = (units, rows, max(1, min(splits, self.device.multiprocessors // (units * rows))))
        arrays = (qkv, s.seqs, s.positions, s.visible, s.table, cache.k, cache.v, out)
        blocks = attend_blocks(kv_heads, d, self.dtype.itemsize, self.device.arch)
        name = f"attend_decode<{c_type(self.dtype)}, {d}, {tile.tiles}, {blocks}>"
        state = (scratch.partial, scratch.stats, scratch.arrived)
        sizes = (rows, heads // kv_heads, kv_heads, s.table.shape[1], window, scratch.splits)
        sizes = (*(np.int32(v) for v in sizes), scale)
        self._launch("attend_decode.cu", name, grid, 256, *arrays, *state, *sizes, shared=tile.shared)

    def save_pages(self, pool, host, pages, places):
        self._copy_pages("save_pages", "true", pool, host, pages, places)

    def load_pages(self, pool, host, pages, places):
        self._copy_pages("load_pages", "false", pool, host, pages, places)

    def _copy_pages(self, op: str, save: str, pool: Array, host: Array, pages: Array, places: Array) -> None:
        """An ordinary launch: the next kernels read the KV cache before grid_wait, so they must not start early."""
        parts, total, *page = pool.shape
        expect(op, "pool", pool, self.dtype, (parts, total, *page))
        expect(op, "host", host, self.dtype, (len(host), parts, *page))
        expect(op, "pages", pages, I32, (len(pages),))
        expect(op, "places", places, I32, (len(pages),))
        quads = math.prod(page) * self.dtype.itemsize // 16
        grid = (min(-(-quads // 256), 4), parts, len(pages))
        kernel = self.device.kernel("pages.cu", f"copy_pages<{save}>")
        self.device.launch(kernel, grid, (256,), [pool, host, pages, places, np.int32(total), np.int32(quads)])

    # -- sampling ---------------------------------------------------------------------------------------------------

    def sample(self, logits: Array, s: Step, sampling: Sampling, out: Array, scratch: Scratch) -> None:
        rows, vocab = logits.shape
        expect("sample", "logits", logits, F32, (rows, vocab))
        expect("sample", "last", s.last, I32, (rows,))
        expect("sample", "out", out, I32, (rows,))
        self._expect_step("sample", s, len(s.seqs))
        expect("sample", "rules", sampling.rules, np.dtype(np.uint8), (len(s.table), RULES.itemsize))
        expect("sample", "counts", sampling.counts, I32, (len(s.table), vocab))
        if len(scratch.best) < rows:
            raise DeviceError(f"sample: expected scratch for {rows} rows, found it for {len(scratch.best)}")
        arrays = (logits, s.last, s.seqs, s.positions, sampling.rules, sampling.counts, out)
        blocks = max(1, self.device.multiprocessors // rows)  # per row; all blocks fit in one wave
        grid = (min(blocks, -(-vocab // SAMPLED)), rows)
        self._launch("sample.cu", "sample", grid, 512, *arrays, scratch.best, scratch.scanned, np.int32(vocab))

    # -- checks and launches ------------------------------------------------------------------------------------------

    def _launch(self, file: str, name: str, grid: tuple[int, ...], threads: int, *args: Any, shared: int = 0) -> None:
        kernel = self.device.kernel(file, name)
        self.device.launch(kernel, grid, (threads,), args, shared, dependent=True)

    def _expect_step(self, op: str, s: Step, rows: int) -> None:
        for name in ("seqs", "positions", "visible"):
            expect(op, name, getattr(s, name), I32, (rows,))
        expect(op, "table", s.table, I32, s.table.shape)

    def _expect_attention(self, op: str, qkv: Array, s: Step, cache: Cache, heads: int) -> tuple[int, int, int]:
        """(rows, key/value heads, head size), after checking that the arrays agree on them."""
        pages, kv_heads, _, d = cache.k.shape
        expect(op, "cache.k", cache.k, self.dtype, (pages, kv_heads, PAGE, d))
        expect(op, "cache.v", cache.v, self.dtype, (pages, kv_heads, PAGE, d))
        expect(op, "qkv", qkv, self.dtype, (len(qkv), (heads + 2 * kv_heads) * d))
        self._expect_step(op, s, len(qkv))
        if d not in HEAD_SIZES or heads % kv_heads:
            found = f"{heads} heads of {d} on {kv_heads} key/value heads"
            raise DeviceError(
                f"{op}: expected a head size of {HEAD_SIZES} and heads a multiple of k/v heads, found {found}"
            )
        return len(qkv), kv_heads, d
