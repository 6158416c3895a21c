"""The operations a backend provides, and the contract they keep.

Letters as in ModelConfig, plus: R rows (tokens in this call, all sequences concatenated) · S sequences the cache can
hold · P pages · B rows whose logits are wanted. T is the backend's storage type (float32 on NumPy, else bf16, fp16 or
fp32); the residual stream and the logits are float32 everywhere, and so is every sum.

An operation writes its output and returns nothing. It allocates nothing that outlives it, never waits for the device,
and takes from Python only shapes and constants: what changes from step to step is in arrays. So a run of operations
is executed eagerly, captured into a graph, recorded on the CPU, or tested, all by the same call.
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
Part = np.ndarray | Quantised  # some rows of a matrix, as a checkpoint has them
Weight = Any  # whatever Ops.weight returned: plain, packed for a kernel, quantised blocks


@dataclass
class Cache:
    """Keys and values of one layer, in pages that belong to sequences through Step.table."""

    k: Array  # [P, G, PAGE, d] T
    v: Array  # [P, G, PAGE, d] T


class PassKind(Enum):
    """What a pass is for. It alone decides which kernels run, and so which bits come out."""

    DECODE = "decode"  # at most DECODE_ROWS rows, each of a sequence of its own
    PREFILL = "prefill"  # tiles of Ops.tile rows, each of one sequence, which starts a tile; spare rows fill the last
    ENCODER = "encoder"  # tiles of Ops.tile rows; sequences follow one another at multiples of Ops.align

    @property
    def tiled(self) -> bool:
        """The rows come in tiles, for kernels of many rows; else they are few, for kernels of a decode step."""
        return self is not PassKind.DECODE


@dataclass
class Step:
    """One pass of the model: which tokens of which sequences. Row r is token ids[r] of sequence seqs[r].

    Rows beyond the batch in a bucket belong to the spare sequence S, whose pages are all page 0, which nobody reads;
    they have position 0 and visible 1. A tile of PAGE rows costs attention once for each sequence in it."""

    ids: Array  # [R] int32
    seqs: Array  # [R] int32, 0 <= seqs < S, or S for spare rows
    positions: Array  # [R] int32, where the token stands in its sequence
    visible: Array  # [R] int32, the row attends to the first visible[r] tokens of its sequence
    table: Array  # [S + 1, pages per sequence] int32, page table: page of token t is table[seq, t // PAGE]
    last: Array  # [B] int32, the rows whose logits are wanted; of a decode step all of them, in order
    kind: PassKind


@dataclass
class Sampling:
    """How each sequence picks its next token; indexed by sequence, so a row's place in the batch never matters."""

    rules: Array  # [S + 1, RULES.itemsize] uint8: a record a sequence, see engine/ops/sampling.py
    counts: Array  # [S + 1, V] int32, 2 * times generated + (1 if in the prompt); kept only with penalties on


@dataclass
class Mail:
    """Where decode steps leave their tokens for the host, which reads them without a copy.

    Each row goes round in its places, a step a place: nothing has to be told to a step that is launched before the
    tokens of the last ones were read, and the host finds them by counting steps."""

    box: Array  # [R, MAIL] int32, memory of the host (Device.pinned)
    place: Array  # [R] int32, 0 <= place < MAIL: where the row's next token goes


@dataclass
class Buffers:
    """Where activations live between operations, of passes of up to R rows, B of which want logits."""

    x: Array  # [R, D] float32, the residual stream
    h: Array  # [R, D] T, normalised x, or what a backend prepares for a norm
    qkv: Array  # [R, (H + 2 G) d] T; attend reads the first H d columns
    attn: Array  # [R, H d] T
    gate_up: Array  # [R, 2 F] T, gate columns first
    ffn: Array  # [R, F] T
    logits: Array  # [B, V] float32
    tokens: Array  # [B] int32, what was sampled
    scratch: Any  # a backend's own: what Ops.scratch made

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
        """The same for steps of fewer rows, with other arrays in place of some."""
        views = {name: getattr(self, name)[:rows] for name in ("x", "h", "qkv", "attn", "gate_up", "ffn")}
        return replace(self, **{**views, **others})


class Ops:
    """Primitives raise NotImplementedError; composites are written in terms of them, for fused kernels to override."""

    name: str  # "numpy", "cuda", "cublas"
    dtype: np.dtype  # T
    device: Any  # Device: allocates, copies, launches
    tile: int = PAGE  # rows of a pass over prompts or texts are a multiple of it, and prompts begin at one
    pass_rows: int = 1 << 16  # rows of the largest pass that is worth it; prefill_rows may ask for fewer
    unpacks: bool = False  # prompts need room for the largest matrix of a layer that is kept quantised, as numbers of T
    exact: bool = True  # a row's bits depend on its sequence alone: not on its company, nor on how a prompt is cut

    @property
    def workspace(self) -> Any:
        """Arrays of the backend's own that live as long as the weights."""
        return None

    @property
    def align(self) -> int:
        """Texts of an encoder begin at multiples of so many rows, to have the same bits in any company."""
        return 1

    # -- memory ---------------------------------------------------------------------------------------------------

    def weight(self, parts: Sequence[Part], layout: str = "rows", head_dim: int = 0) -> Weight:
        """A matrix [N, K] from row blocks `parts`, in whatever form `linear` wants. An array is stored as T.

        A quantised part stands for its `numbers()`, and `keeps` says whether they are rounded to T.

        layout: "rows" as given; "qkv" parts are q [H d, K], k [G d, K], v [G d, K], of heads of head_dim rows;
        "gate_up" parts are gate [F, K], up [F, K]. The layout tells a fused kernel which rows belong together; the
        columns that `linear` writes are in the order of the parts whatever the layout.
        """
        raise NotImplementedError

    def keeps(self, parts: Sequence[Quantised | None], layout: str = "rows", head_dim: int = 0) -> bool:
        """Whether `weight` keeps these parts in the bytes that the file has of them, and computes with those. If not,
        it dequantises them to T. parts: None for an array."""
        return False

    def loaded(self, w: Weights) -> None:
        """All weights of a model have been made: a backend may look at the order in which a step needs them."""

    def vector(self, parts: Sequence[np.ndarray]) -> Array:
        """A bias or norm weight [N] from its parts, float32."""
        return self.device.upload(np.concatenate([np.asarray(p, np.float32) for p in parts]))

    def buffers(self, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Buffers:
        """Activations and scratch for passes of this kind, of up to `rows` rows of which `last` want logits."""
        return Buffers.of(self.device, self.dtype, c, rows, last, self.scratch(c, kind, rows, last))

    def scratch(self, c: ModelConfig, kind: PassKind, rows: int, last: int) -> Any:
        """What the backend's operations need beside the activations. UnsupportedModel if it cannot run the model."""
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

        x [R, D] float32, out [*, D] T. keep [*, D] float32, may be x: the same not rounded to T. A post-norm layer goes
        on with both: its residual stream is what was normalised."""
        raise NotImplementedError

    def linear(
        self, x: Array, weight: Weight, out: Array, kind: PassKind, bias: Array | None = None,
        residual: Array | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """out = scale x @ weight.T + bias + residual, summed up as passes of this kind do. A scale of 1 has the bits of
        none.

        x [R, K] T, weight [N, K], bias [N] float32, out [R, N] T or float32; residual [R, N] float32 may be out"""
        raise NotImplementedError

    def head_norm(self, qkv: Array, q_weight: Array, k_weight: Array, eps: float, heads: int, kv_heads: int) -> None:
        """RMS-normalise every q and k head in place.  qkv [R, (H + 2 G) d] T, weights [d] float32"""
        raise NotImplementedError

    def rope_append(self, qkv: Array, rope: Array, s: Step, cache: Cache, heads: int) -> None:
        """Rotate q in place, and store rotated k, and v, at (seqs[r], positions[r]) of the cache.

        qkv [R, (H + 2 G) d] T; rope [T, d] float32: the cosines of a position's d/2 angles, then the sines; element i
        of a head is paired with element i + d/2. The k and v columns of qkv are unspecified afterwards."""
        raise NotImplementedError

    def append(self, qkv: Array, s: Step, cache: Cache, heads: int) -> None:
        """Store k and v as they are at (seqs[r], positions[r]) of the cache.  qkv [R, (H + 2 G) d] T"""
        raise NotImplementedError

    def save_pages(self, pool: Array, host: Array, pages: Array, places: Array) -> None:
        """host[places[i]] = pool[:, pages[i]]: pages of the KV cache to host memory (Device.pinned).

        pool [2 L, P, G, PAGE, d] and host [N, 2 L, G, PAGE, d] T; pages, places [n] int32, no place twice"""
        raise NotImplementedError

    def load_pages(self, pool: Array, host: Array, pages: Array, places: Array) -> None:
        """pool[:, pages[i]] = host[places[i]]: back again, perhaps to other pages; arrays as for save_pages, no page
        twice."""
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
        """out = x P(N < x), N standard normal; with tanh 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
        x, out [R, F] T; out may be x"""
        raise NotImplementedError

    def pool(self, x: Array, first: Array, count: Array, out: Array) -> None:
        """out[i] = mean of x[first[i] + j], 0 <= j < count[i]; 0 where count[i] is 0.

        x [R, D] float32, first, count [N] int32, out [N, D] float32"""
        raise NotImplementedError

    def sample(self, logits: Array, s: Step, sampling: Sampling, out: Array, scratch: Any) -> None:
        """out[i] = next token of row last[i], by the rules of its sequence, as engine/ops/sampling.py defines.

        logits [B, V] float32 (unchanged), out [B] int32. With any penalty on, counts[seq, token] += 2."""
        raise NotImplementedError

    def advance(self, s: Step, tokens: Array, mail: Mail) -> None:
        """The sampled tokens become the next step's input: ids = tokens (0 where there is none, -1), positions += 1,
        visible += 1. They go to the host as well: box[r, place[r]] = tokens[r], then place = (place + 1) % MAIL. Spare
        rows (seqs == S) stay as they are, and send nothing.  tokens [R] int32; decode steps only: B == R"""
        raise NotImplementedError

    # -- composites: a decoder is embed_tokens, in each layer norm_qkv, attend, linear_add, norm_gate_up and linear_add,
    # -- and norm_head. What adds to the residual stream b.x is told the weight [D] of the RMS norm that comes next, so
    # -- that a fused kernel can see to a part of it; norm_* may rely on that.

    def embed_tokens(self, s: Step, table: Weight, b: Buffers, norm: Array, scale: float = 1.0) -> None:
        """b.x = scale times the rows s.ids of the embedding table [V, D]."""
        self.embed(s.ids, table, b.x, scale)

    def linear_add(self, x: Array, weight: Weight, b: Buffers, s: Step, norm: Array, scale: float = 1.0) -> None:
        """b.x += scale x @ weight.T.  x [R, K] T, weight [D, K]"""
        self.linear(x, weight, b.x, s.kind, residual=b.x, scale=scale)

    def linear_append(self, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step, cache: Cache) -> None:
        """From the normalised b.h to queries in b.qkv and new keys and values in the cache, nothing rotated."""
        self.linear(b.h, w.qkv, b.qkv, s.kind, bias=w.qkv_bias)
        self.append(b.qkv, s, cache, spec.heads)

    def linear_gelu(self, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step) -> None:
        """b.ffn = gelu of the normalised b.h through w.up."""
        self.linear(b.h, w.up, b.ffn, s.kind, bias=w.up_bias)
        self.gelu(b.ffn, spec.activation == "gelu_tanh", b.ffn)

    def norm_qkv(self, c: ModelConfig, spec: LayerSpec, w: LayerWeights, b: Buffers, s: Step, cache: Cache) -> None:
        """From the residual stream b.x to rotated queries in b.qkv and the new keys and values in the cache."""
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
        """b.logits = c.logit_scale head of the final norm of rows s.last of b.x.

        w.head_bias [V] float32 (or None) bans tokens."""
        last = b.h[: len(s.last)]
        self.rms_norm(b.x, w.norm, c.eps, last, rows=s.last)
        self.head(last, w.head, b.logits, w.head_bias, c.logit_scale)

    def head(self, x: Array, weight: Weight, out: Array, bias: Array | None, scale: float = 1.0) -> None:
        """out = scale x @ weight.T + bias: logits of the rows x [B, D] T, out [B, V] float32.


        Products of a decode step whatever the pass: a row's logits have the same bits in every company."""
        self.linear(x, weight, out, PassKind.DECODE, bias=bias, scale=scale)


def expect_decode(op: str, rows: int) -> None:
    """DeviceError if these are too many rows for the kernels of a decode step."""
    if rows > DECODE_ROWS:
        raise DeviceError(f"{op}: expected at most {DECODE_ROWS} rows in a decode pass, found {rows}")
