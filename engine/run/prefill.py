"""Prefill passes, captured as graphs where they are short: prepare(rows, scope), run(pieces, ends).

Python takes longer to launch a short prompt's kernels, some seven a layer, than they take to run. So the layers are
captured when a model is loaded, once for every row count up to RECORDED. Longer passes are launched kernel by kernel.
So is the head, whose row count is the number of prompts that end in a pass.

This module holds the rows and activations of a pass; the KV cache belongs to the runner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..graph.capture import CaptureReport, Part, Program
from ..ops.base import Array, Buffers, Ops, PassKind, Step
from .passes import Piece, fill, rows_of, spare_rows

RECORDED = 512  # rows: the 1B takes an H100 as long by then as its launches take the host; each size costs loading time
_BODY, _HEAD = slice(-1), slice(-1, None)  # of a pass's parts


class Prompts:
    """Prefill passes of one model.

    program: capture.program or nvtx's. parts(ops, b, s): embed, layers and head of a pass. b: for as many rows as the
    largest pass has. table [S + 1, pages] int32; spare: the slot of the rows that fill a tile up."""

    def __init__(
        self,
        ops: Ops,
        program: Callable[..., Program],
        parts: Callable[[Any, Buffers, Step], list[Part]],
        b: Buffers,
        table: Array,
        spare: int,
    ) -> None:
        self._ops, self._program, self._parts, self._b = ops, program, parts, b
        self._table, self._spare = table, spare
        self._state = ops.device.empty((4 * len(b.x),), np.dtype(np.int32))  # of any pass: the first 4 R of it
        self._recorded: dict[int, Program] = {}
        self.captured = CaptureReport()

    @property
    def sizes(self) -> range:
        """Row counts of the passes that `prepare` captures."""
        tile = self._ops.tile
        return range(tile, min(RECORDED, len(self._b.x)) + 1, tile)

    def prepare(self, rows: int, scope: str) -> None:
        """Capture passes of `rows` rows: "layer" (a graph a part) or "step" (one graph). CaptureError if it fails."""
        self._ops.device.write(self._state[: 4 * rows], spare_rows(rows, self._spare).ravel())
        self._recorded[rows] = self._part(*self._arrays(rows, []), _BODY, scope)

    def run(self, pieces: Sequence[Piece], ends: Sequence[int] = ()) -> tuple[Buffers, Step]:
        """Launch one pass over pieces, each padded to whole tiles; does not wait.

        ends: the pieces that want logits, [N, V] in the returned buffers. Without any, the head is not run."""
        rows = rows_of(pieces, self._ops.tile)
        state = spare_rows(rows, self._spare)
        starts = fill(state, pieces, causal=True, align=self._ops.tile)
        self._ops.device.write(self._state[: 4 * rows], state.ravel())
        b, s = self._arrays(rows, [starts[i] + len(pieces[i].ids) - 1 for i in ends])
        body = self._recorded.get(rows) or self._part(b, s, _BODY, "off")
        body.run()
        if ends:
            self._part(b, s, _HEAD, "off").run()
        return b, s

    def _arrays(self, rows: int, last: Sequence[int]) -> tuple[Buffers, Step]:
        """Buffers and Step of a pass of `rows` rows, of which `last` want logits."""
        whole, n = self._b, len(last)
        b = whole.first(rows, logits=whole.logits[:n], tokens=whole.tokens[:n])
        state = self._state[: 4 * rows].reshape(4, rows)
        wanted = self._ops.device.upload(np.array(last, np.int32))
        return b, Step(*(state[i] for i in range(4)), table=self._table, last=wanted, kind=PassKind.PREFILL)

    def _part(self, b: Buffers, s: Step, which: slice, scope: str) -> Program:
        """The program of some parts of a pass, captured by scope."""
        label = f"graph {scope}, prompts of {len(s.ids)} rows"
        device, ops = self._ops.device, self._ops
        return self._program(device, ops, lambda over: self._parts(over, b, s)[which], scope, label, self.captured)
