"""Forward passes over prompts, recorded where they are short: prepare(rows, scope), run(pieces, ends).

Python takes longer to launch a short prompt's kernels, some seven a layer, than they take to run. So for every number
of rows up to RECORDED the layers are recorded when a model is loaded, each for exactly these rows. Longer passes are
launched one kernel after the other, as the head is, whose rows are as many as prompts end in a pass.
Holds the rows and activations of the pass that runs; the cache belongs to the runner.
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
    """See the module.

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
        """Rows of the passes that `prepare` records."""
        tile = self._ops.tile
        return range(tile, min(RECORDED, len(self._b.x)) + 1, tile)

    def prepare(self, rows: int, scope: str) -> None:
        """Record passes of `rows` rows: "layer" (a graph a part) or "step" (one graph). CaptureError if it fails."""
        self._ops.device.write(self._state[: 4 * rows], spare_rows(rows, self._spare).ravel())
        self._recorded[rows] = self._part(*self._arrays(rows, []), _BODY, scope)

    def run(self, pieces: Sequence[Piece], ends: Sequence[int] = ()) -> tuple[Buffers, Step]:
        """Launch one pass over pieces, each filled up to whole tiles with spare rows; does not wait.

        ends: which of them want logits, [N, V] in the buffers that are returned; without any there is no head."""
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
        """Of a pass of `rows` rows, of which `last` want logits."""
        whole, n = self._b, len(last)
        b = whole.first(rows, logits=whole.logits[:n], tokens=whole.tokens[:n])
        state = self._state[: 4 * rows].reshape(4, rows)
        wanted = self._ops.device.upload(np.array(last, np.int32))
        return b, Step(*(state[i] for i in range(4)), table=self._table, last=wanted, kind=PassKind.PREFILL)

    def _part(self, b: Buffers, s: Step, which: slice, scope: str) -> Program:
        """Some of a pass's parts, recorded by scope."""
        label = f"graph {scope}, prompts of {len(s.ids)} rows"
        device, ops = self._ops.device, self._ops
        return self._program(device, ops, lambda over: self._parts(over, b, s)[which], scope, label, self.captured)
