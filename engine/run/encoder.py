"""Weights, buffers and graphs of one encoder on one device: embed(texts), or pass by pass set_texts, launch, vectors.

The counterpart of runner.py. An encoder samples no tokens and keeps no KV cache: keys and values live for one layer of
one pass. It holds all device memory and knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..config import EngineConfig, ModelConfig
from ..graph.capture import CaptureReport, Part, Program
from ..models import MODELS
from ..models.weights import Weights
from ..ops.base import Array, Buffers, Cache, Ops, PassKind, Step
from ..sizes import PAGE
from .base_runner import BaseRunner, Progress, each, silent
from .cache import pages_of
from .passes import Piece, fill, rows_of, spare_rows

Ids = Sequence[int]  # the tokens of one text
TEXT_ROWS = 8  # rows for each text that a pass has room for: shorter texts count as so many


class State:
    """The inputs of a pass in one int32 array, so that they are one copy to the device; and views of its parts."""

    def __init__(self, array: Array, rows: int, pages: int) -> None:
        """array: on the host or the device, as long as that of State.spare. pages: of the longest text."""
        texts = rows // TEXT_ROWS
        ends = np.cumsum([4 * rows, (texts + 1) * pages, texts, texts]).tolist()
        step, table, first, count = (array[a:z] for a, z in zip([0, *ends], ends, strict=False))
        self.array = array
        self.step = step.reshape(4, rows)  # ids, seqs, positions, visible, as Step has them
        self.table = table.reshape(texts + 1, pages)  # the pages of text i come after those of text i - 1
        self.first = first  # [N] first row to pool of each text
        self.count = count  # [N] how many; 0 where there is no text

    @staticmethod
    def spare(rows: int, pages: int) -> State:
        """A state without texts, on the host."""
        texts = rows // TEXT_ROWS
        state = State(np.zeros(4 * rows + (texts + 1) * pages + 2 * texts, np.int32), rows, pages)
        state.step[...] = spare_rows(rows, texts)
        return state


@dataclass
class EncoderBucket:
    """A pass of `rows` rows: its arrays and its program."""

    rows: int
    spare: np.ndarray  # a State without texts
    host: State  # the State that is copied to the device
    state: Array  # on the device
    out: Array  # [N, D] float32: a pooled vector for each text
    program: Program


class Encoder(BaseRunner[EncoderBucket]):
    """See the module. CaptureError if a pass cannot be captured, RequestError for a decoder.

    w: what load.weights returned. Of e it takes graph, nvtx, max_len and prefill_rows, the rows of the largest pass (as
    many as the longest text needs, at least). progress(done, all) is called while buckets are prepared."""

    def __init__(
        self,
        ops: Ops,
        c: ModelConfig,
        w: Weights,
        e: EngineConfig,
        progress: Progress = silent,
    ) -> None:
        super().__init__(ops, c, w, e, causal=False)
        self._pages = pages_of(self.max_len)
        most = max(min(e.prefill_rows, ops.pass_rows), self._pages * PAGE)
        sizes = _sizes(most, ops.tile)
        self._buffers = ops.buffers(c, PassKind.ENCODER, most, 0)
        pages = 1 + most // PAGE + most // TEXT_ROWS  # page 0 is for padding rows; no two texts share a page
        shape = (pages, c.sizes.kv_heads, PAGE, c.sizes.head_dim)
        self._cache = Cache(self.device.empty(shape, ops.dtype), self.device.empty(shape, ops.dtype))
        self.captured = CaptureReport()

        def prepare(rows: int) -> None:
            self._buckets[rows] = self._prepare_pass(rows, e.graph)

        each([partial(prepare, rows) for rows in sizes], progress)
        self._current, self._texts = self._buckets[sizes[0]], 0

    def embed(self, texts: Sequence[Ids], cls: bool = False) -> np.ndarray:
        """[N, D] float32: the mean of each text's last hidden states, or with cls the one of its first token.

        A pass takes as many texts as its rows hold. A text's bits do not depend on the other texts, except with cublas.
        Texts have 1 to max_len tokens."""
        out = np.empty((len(texts), self.c.hidden), np.float32)
        first = 0
        while first < len(texts):
            last = self._fits(texts, first)
            self.set_texts(texts[first:last], cls)
            self.launch()
            out[first:last] = self.vectors()
            first = last
        return out

    def set_texts(self, texts: Sequence[Ids], cls: bool = False) -> None:
        """Set the texts of the next passes. Together they fit into the largest bucket."""
        pieces = [Piece(i, ids) for i, ids in enumerate(texts)]
        rows = max(rows_of(pieces, self.ops.align), len(texts) * TEXT_ROWS)
        bucket = self._current = self._bucket_of(rows)
        n, state = len(texts), bucket.host
        self._texts = n
        state.array[...] = bucket.spare
        state.first[:n] = fill(state.step, pieces, causal=False, align=self.ops.align)
        page = 1
        for i, ids in enumerate(texts):
            after = page + pages_of(len(ids))
            state.table[i, : after - page] = range(page, after)
            page = after
        state.count[:n] = [1 if cls else len(ids) for ids in texts]
        self.device.write(bucket.state, state.array)

    def launch(self) -> None:
        """Launch a pass over the texts of set_texts(); does not wait."""
        self._current.program.run()

    def vectors(self) -> np.ndarray:
        """[N, D] float32 of the texts of set_texts(), once the pass launched last is done."""
        return self.device.read(self._current.out[: self._texts])

    # -- inside ---------------------------------------------------------------------------------------------------

    def _fits(self, texts: Sequence[Ids], first: int) -> int:
        """The end of the texts that, from `first` on, fit into one pass."""
        room, last = self.buckets[-1], first
        while last < len(texts):
            room -= max(rows_of([Piece(0, texts[last])], self.ops.align), TEXT_ROWS)
            if room < 0:
                break
            last += 1
        return last

    def _prepare_pass(self, rows: int, scope: str) -> EncoderBucket:
        """Prepare passes of `rows` rows."""
        device, host = self.device, State.spare(rows, self._pages)
        state = State(device.upload(host.array), rows, self._pages)
        out = device.empty((rows // TEXT_ROWS, self.c.hidden), np.dtype(np.float32))
        s = Step(*state.step, table=state.table, last=state.first, kind=PassKind.ENCODER)
        make = partial(self._parts, self._buffers.first(rows), s, state, out)
        step = self._program(device, self.ops, make, scope, f"graph {scope}, bucket {rows}", self.captured)
        if scope == "off" and device.is_gpu:
            step.run()  # compiles the kernels, which would else count as the first text's time
            device.synchronize()
        return EncoderBucket(rows, host.array.copy(), host, state.array, out, step)

    def _parts(self, b: Buffers, s: Step, state: State, out: Array, ops: Ops) -> Iterator[Part]:
        """A pass from token ids to pooled vectors over ops, in named parts."""
        embed, *layers = MODELS[self.c.arch].parts(ops, self.c, self.w, b, s, [self._cache])
        yield "embed", embed
        for i, layer in enumerate(layers):
            yield f"layer {i}", layer
        yield "pool", lambda: ops.pool(b.x, state.first, state.count, out)


def _sizes(most: int, tile: int) -> list[int]:
    """Rows of the passes to prepare, up to `most`: powers of two, as each costs a recording. A backend of smaller tiles
    than kernels have records nothing, and has four sizes in place of one."""
    sizes, n = [], tile
    while n < most:
        sizes.append(n)
        n += n if tile == PAGE else max(tile, (1 << n.bit_length() - 1) // 4)
    return [*sizes, most]
