"""The operations of a backend, and their contract.

Letters as in ModelConfig, plus: R rows (tokens of this pass, all sequences concatenated) · S sequences in the KV cache
· P pages · B rows whose logits are needed. T is the backend's storage type (float32 on NumPy; bf16, fp16 or fp32 on a
GPU). The residual stream, the logits and all sums are float32.

An operation writes its output and returns nothing. It keeps no allocation, never waits for the device, and takes only
shapes and constants from Python: every value that changes between steps is in an array. So the same calls can run
eagerly, be captured into a CUDA graph, be recorded on the CPU, or be tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from ..config import LayerSpec, ModelConfig
from ..errors import DeviceError
from ..models.weights import LayerWeights, Weights
from ..sizes import DECODE_ROWS, PAGE
from ..weights.quantised import Quantised

Array = Any  # numpy.ndarray or cupy.ndarray, by backend
Part = np.ndarray | Quantised  # some rows of a matrix, as stored in a checkpoint
Weight = Any  # what Ops.weight returned: a plain matrix, one packed for a kernel, or quantised blocks


@dataclass
class Cache:
    """The KV cache of one layer, in pages; Step.table maps sequences to pages."""

    k: Array  # [P, G, PAGE, d] T
    v: Array  # [P, G, PAGE, d] T


class PassKind(Enum):
    """The kind of a pass. It alone decides which kernels run, and so the bits of the results."""

    DECODE = "decode"  # at most DECODE_ROWS rows, each of a different sequence
    PREFILL = "prefill"  # tiles of Ops.tile rows; a sequence starts at a tile, and padding rows fill its last tile
    ENCODER = "encoder"  # tiles of Ops.tile rows; sequences start at multiples of Ops.align

    @property
    def tiled(self) -> bool:
        """Whether rows come in tiles, for kernels of many rows; else they are few, for decode kernels."""
        return self is not PassKind.DECODE


@dataclass
class Step:
    """The inputs of one pass. Row r is token ids[r] of sequence seqs[r].

    Padding rows fill a bucket beyond the batch. They belong to the padding sequence S, have position 0 and visible 1,
    and write to page 0, which no sequence reads. Attention makes one pass over the keys per sequence in a tile."""

    ids: Array  # [R] int32
    seqs: Array  # [R] int32, 0 <= seqs < S; S for padding rows
    positions: Array  # [R] int32, position of the token in its sequence
    visible: Array  # [R] int32, context length: the row attends to the first visible[r] tokens of its sequence
    table: Array  # [S + 1, pages per sequence] int32, block table: token t is in page table[seq, t // PAGE]
    last: Array  # [B] int32, rows whose logits are needed; in a decode step all rows, in order
    kind: PassKind


@dataclass
class Sampling:
    """The sampling rules and token counts of all sequences, indexed by sequence and not by place in the batch."""

    rules: Array  # [S + 1, RULES.itemsize] uint8: one record per sequence, see engine/ops/sampling.py
    counts: Array  # [S + 1, V] int32, 2 * times generated + (1 if in the prompt); maintained only with penalties


@dataclass
class Mail:
    """The token ring buffer: decode steps write their tokens to host memory, which the host reads without a copy.

    Each row has a ring of MAIL entries and a write index in device memory, which every step increments. So a step can
    be launched before earlier tokens were read, and a graph needs no change. The host mirrors the index by counting
    steps."""

    box: Array  # [R, MAIL] int32, the rings, in pinned host memory (Device.pinned)
    place: Array  # [R] int32, the write index of each row, 0 <= place < MAIL


@dataclass
class Buffers:
    """Activations between operations, for passes of up to R rows, of which B need logits."""

    x: Array  # [R, D] float32, the residual stream
    h: Array  # [R, D] T, normalised x; with a deferred RMSNorm scale x * weight
    qkv: Array  # [R, (H + 2 G) d] T; attend reads the first H d columns
    attn: Array  # [R, H d] T
    gate_up: Array  # [R, 2 F] T, gate columns first
    ffn: Array  # [R, F] T
    logits: Array  # [B, V] float32
    tokens: Array  # [B] int32, the sampled tokens
    scratch: Any  # of the backend, from Ops.scratch

    @staticmethod
    def of(device: Any, t: np.dtype, c: ModelConfig, rows: int, last: int, scratch: Any) -> Buffers:
        """New arrays on the device, R = rows, B = last; contents unspecified."""
        new, f, of = device.empty, np.dtype(np.float32), c.sizes
        return Buffers(
            x=new((rows, c.hidden), f), h=new((rows, c.hidden), t), qkv=new((rows, of.qkv), t),
            attn=new((rows, of.heads * of.head_dim), t), gate_up=new((rows, 2 * of.ffn), t), ffn=new((rows, of.ffn), t),
            logits=new((last, c.vocab), f), tokens=new((last,), np.dtype(np.int32)), scratch=scratch,
        )  # fmt: skip

    def first(self, rows: int, **others: Any) -> Buffers:
        """Views for passes of fewer rows. others: arrays that replace fields."""
        views = {name: getattr(self, name)[:rows] for name in ("x", "h", "qkv", "attn", "gate_up", "ffn")}
        return replace(self, **{**views, **others})


class Ops:
    """Primitives raise NotImplementedError; composites are defined by primitives, and fused kernels override them."""

    name: str  # "numpy", "cuda", "cublas"
    dtype: np.dtype  # T
    device: Any  # Device: allocates, copies, launches
    tile: int = PAGE  # passes over prompts or texts have a multiple of this many rows; prompts start at a multiple
    pass_rows: int = 1 << 16  # rows of the largest efficient pass; prefill_rows may be smaller
    unpacks: bool = False  # prompts need room for the largest quantised matrix of a layer, as numbers of T
    exact: bool = True  # a row's bits depend on its own sequence only, not on the batch or on chunking

    @property
    def workspace(self) -> Any:
        """Arrays of the backend's own that live as long as the weights."""
        return None

    @property
    def align(self) -> int:
        """Texts of an encoder start at multiples of this many rows, so that their bits do not depend on the batch."""
        return 1

    # -- memory ---------------------------------------------------------------------------------------------------

    def weight(self, parts: Sequence[Part], layout: str = "rows", head_dim: int = 0) -> Weight:
        """Upload a matrix [N, K], given as row blocks `parts`, in the form that `linear` needs. Arrays are stored as T.

        A quantised part represents its `numbers()`; `keeps` says whether they are rounded to T.

        layout: "rows": as given; "qkv": parts q [H d, K], k [G d, K], v [G d, K], of heads of head_dim rows;
        "gate_up": parts gate [F, K], up [F, K]. The layout tells a fused kernel which rows belong together. The columns
        that `linear` writes are in the order of the parts in every layout.
        """
        raise NotImplementedError

    def keeps(self, parts: Sequence[Quantised | None], layout: str = "rows", head_dim: int = 0) -> bool:
        """Whether `weight` keeps these parts in their quantised form and computes with it; else it dequantises them to
        T. parts: None for an array."""
        return False

    def loaded(self, w: Weights) -> None:
        """All weights of a model have been made: a backend may look at the order in which a step needs them."""

    def vector(self, parts: Sequence[np.ndarray]) -> Array:
        """A bias or norm weight [N] from its parts, float32."""
        return self.device.upload(np.concatenate([np.asarray(p, np.float32) for p in parts]))

    def buffers(self, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Buffers:
        """Activations and scratch for passes of this kind with up to `rows` rows, of which `last` need logits."""
        return Buffers.of(self.device, self.dtype, c, rows, last, self.scratch(c, kind, rows, last))

    def scratch(self, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Any:
        """Working memory of the backend's operations. UnsupportedModel if the backend cannot run the model."""
        return None

    # -- primitives -----------------------------------------------------------------------------------------------

    def embed(self, ids: Array, table: Weight, out: Array, scale: float = 1.0) -> None:
        """out[r] = scale table[ids[r]].  ids [R], table [V, D], out [R, D] float32"""
        raise NotImplementedError

    def embed_at(self, ids: Array, table: Weight, at: Array, places: Array, out: Array) -> None:
        """out[r] = table[ids[r]] + places[at[r]].  ids, at [R], table [V, D], places [T, D] and out [R, D] float32"""
        raise NotImplementedError

    def rms_norm(self, x: Array, weight: Array, eps: float, out: Array, rows: Array | None = None) -> None:
        """out[i] = x[r] / sqrt(mean(x[r]^2) + eps) * weight with r = rows[i], or i.  x [R, D] float32, out [*, D] T"""
        raise NotImplementedError

    def layer_norm(
        self, x: Array, weight: Array, bias: Array, eps: float, out: Array, rows: Array | None = None,
        keep: Array | None = None,
    ) -> None:  # fmt: skip
        """out[i] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * weight + bias with r = rows[i], or i.

        x [R, D] float32, out [*, D] T. keep [*, D] float32, may be x: the result before rounding to T, which becomes
        the residual stream of a post-norm layer."""
        raise NotImplementedError

    def linear(
        self, x: Array, weight: Weight, out: Array, kind: PassKind, bias: Array | None = None,
        residual: Array | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """out = scale x @ weight.T + bias + residual, with the order of sums of this kind of pass. A scale of 1 changes
        no bit.

        x [R, K] T, weight [N, K], bias [N] float32, out [R, N] T or float32; residual [R, N] float32, may be out"""
        raise NotImplementedError

    def head_norm(self, qkv: Array, q_weight: Array, k_weight: Array, eps: float, heads: int, kv_heads: int) -> None:
        """QK-norm: RMSNorm of every q and k head in place.  qkv [R, (H + 2 G) d] T, weights [d] float32"""
        raise NotImplementedError

    def rope_append(self, qkv: Array, rope: Array, s: Step, cache: Cache, heads: int) -> None:
        """Rotate q in place; store rotated k, and v, at (seqs[r], positions[r]) of the KV cache.

        qkv [R, (H + 2 G) d] T; rope [T, d] float32: per position d/2 cosines, then d/2 sines; element i of a head is
        paired with element i + d/2. The k and v columns of qkv are unspecified afterwards."""
        raise NotImplementedError

    def append(self, qkv: Array, s: Step, cache: Cache, heads: int) -> None:
        """Store k and v without rotation at (seqs[r], positions[r]) of the KV cache.  qkv [R, (H + 2 G) d] T"""
        raise NotImplementedError

    def save_pages(self, pool: Array, host: Array, pages: Array, places: Array) -> None:
        """host[places[i]] = pool[:, pages[i]]: copy pages of the KV cache to host memory (Device.pinned).

        pool [2 L, P, G, PAGE, d] T, host [N, 2 L, G, PAGE, d] T; pages, places [n] int32; places are distinct"""
        raise NotImplementedError

    def load_pages(self, pool: Array, host: Array, pages: Array, places: Array) -> None:
        """pool[:, pages[i]] = host[places[i]]: copy pages back, to the same or other pages. Arrays as in save_pages;
        pages are distinct."""
        raise NotImplementedError

    def attend(
        self, qkv: Array, s: Step, cache: Cache, heads: int, window: int, out: Array, scratch: Any,
        scale: float | None = None,
    ) -> None:  # fmt: skip
        """out[r] = softmax(scale q[r] k^T) v over tokens t of sequence seqs[r] with t < visible[r] and, if window,
        t >= visible[r] - window.  qkv [R, (H + 2 G) d] T, out [R, H d] T; query head h uses k/v head h // (H / G).

        scale: None is 1 / sqrt(d)."""
        raise NotImplementedError

    def silu_mul(self, gate_up: Array, out: Array) -> None:
        """out = gate / (1 + exp(-gate)) * up.  gate_up [R, 2 F] T (gate first), out [R, F] T"""
        raise NotImplementedError

    def gelu(self, x: Array, tanh: bool, out: Array) -> None:
        """GELU: out = x P(N < x), N standard normal; tanh: out = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).

        x, out [R, F] T; out may be x"""
        raise NotImplementedError

    def pool(self, x: Array, first: Array, count: Array, out: Array) -> None:
        """out[i] = mean of x[first[i] + j], 0 <= j < count[i]; 0 where count[i] is 0.

        x [R, D] float32, first, count [N] int32, out [N, D] float32"""
        raise NotImplementedError

    def sample(self, logits: Array, s: Step, sampling: Sampling, out: Array, scratch: Any) -> None:
        """out[i] = next token of row last[i] by the rules of its sequence, as engine/ops/sampling.py defines it.

        logits [B, V] float32 (not modified), out [B] int32. With a penalty, counts[seq, token] += 2."""
        raise NotImplementedError

    def advance(self, s: Step, tokens: Array, mail: Mail) -> None:
        """Make the sampled tokens the next step's input: ids = max(tokens, 0), positions += 1, visible += 1.

        A token of -1 means no token. Also write tokens to the ring buffer: box[r, place[r]] = tokens[r], place[r] =
        (place[r] + 1) % MAIL. Padding rows (seqs == S) stay unchanged and write nothing. tokens [R] int32; decode steps
        only: B == R"""
        raise NotImplementedError

    # -- composites: a decoder is embed_tokens; in each layer norm_qkv, attend, linear_add, norm_gate_up, linear_add;
    # -- and norm_head. Operations that add to the residual stream b.x also take the weight [D] of the following
    # -- RMSNorm, so that a fused kernel can start that norm (deferred scale); norm_* may rely on it.

    def embed_tokens(self, s: Step, table: Weight, b: Buffers, norm: Array, scale: float = 1.0) -> None:
        """b.x = scale times the rows s.ids of the embedding table [V, D]."""
        self.embed(s.ids, table, b.x, scale)

    def linear_add(self, x: Array, weight: Weight, b: Buffers, s: Step, norm: Array, scale: float = 1.0) -> None:
        """b.x += scale x @ weight.T.  x [R, K] T, weight [D, K]"""
        self.linear(x, weight, b.x, s.kind, residual=b.x, scale=scale)

    def linear_append(self, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step, cache: Cache) -> None:
        """Project the normalised b.h to q in b.qkv, and k and v in the KV cache, without RoPE."""
        self.linear(b.h, w.qkv, b.qkv, s.kind, bias=w.qkv_bias)
        self.append(b.qkv, s, cache, spec.heads)

    def linear_gelu(self, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step) -> None:
        """b.ffn = gelu(b.h @ w.up.T + w.up_bias), b.h normalised."""
        self.linear(b.h, w.up, b.ffn, s.kind, bias=w.up_bias)
        self.gelu(b.ffn, spec.activation == "gelu_tanh", b.ffn)

    def norm_qkv(self, c: ModelConfig, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step, cache: Cache) -> None:
        """Normalise and project the residual stream b.x to q in b.qkv, and k and v in the KV cache, with RoPE."""
        self.rms_norm(b.x, w.attn_norm, c.eps, b.h)
        self.linear(b.h, w.qkv, b.qkv, s.kind, bias=w.qkv_bias)
        if spec.qk_norm:
            self.head_norm(b.qkv, w.q_norm, w.k_norm, c.eps, spec.heads, spec.kv_heads)
        self.rope_append(b.qkv, w.rope, s, cache, spec.heads)

    def norm_gate_up(self, c: ModelConfig, w: LayerWeights, b: Buffers, s: Step) -> None:
        """b.ffn = silu(gate) * up of the normalised residual stream b.x."""
        self.rms_norm(b.x, w.mlp_norm, c.eps, b.h)
        self.linear(b.h, w.gate_up, b.gate_up, s.kind)
        self.silu_mul(b.gate_up, b.ffn)

    def norm_head(self, c: ModelConfig, w: Weights, b: Buffers, s: Step) -> None:
        """b.logits = c.logit_scale * LM head of the final norm of rows s.last of b.x.

        w.head_bias [V] float32 or None: bans tokens."""
        last = b.h[: len(s.last)]
        self.rms_norm(b.x, w.norm, c.eps, last, rows=s.last)
        self.head(last, w.head, b.logits, w.head_bias, c.logit_scale)

    def head(self, x: Array, weight: Weight, out: Array, bias: Array | None, scale: float = 1.0) -> None:
        """out = scale x @ weight.T + bias: logits [B, V] float32 of the rows x [B, D] T.

        Computed as in a decode step in every kind of pass, so that a row's logits have the same bits in any batch."""
        self.linear(x, weight, out, PassKind.DECODE, bias=bias, scale=scale)


def expect_decode(op: str, rows: int) -> None:
    """DeviceError if these are too many rows for decode kernels."""
    if rows > DECODE_ROWS:
        raise DeviceError(f"{op}: expected at most {DECODE_ROWS} rows in a decode pass, found {rows}")
