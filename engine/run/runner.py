"""Weights, buffers, caches and graphs of one decoder on one device: prefill(chunks), set_rows(rows), decode().

Holds all device memory, together with prefill.py, which runs the prompts; knows nothing of text, of who waits, or of
when a sequence ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..config import EngineConfig, ModelConfig
from ..errors import DeviceError
from ..graph.capture import CaptureReport, Part, Program
from ..models import MODELS
from ..models.weights import Weights
from ..ops.base import Array, Buffers, Cache, Mail, Ops, PassKind, Sampling, Step
from ..ops.device import Device
from ..sizes import DECODE_ROWS, MAIL, PAGE, PROMPTS
from .base_runner import BaseRunner, Progress, each, silent
from .cache import PageTable, pages_of
from .passes import Piece, spare_rows
from .prefill import Prompts
from .scheduler import Chunk
from .sequence import Sequence
from .slots import SlotSampling

_SHARE = {True: 0.85, False: 0.5}  # of the free memory that the cache may take: on a GPU, on the host


@dataclass(frozen=True)
class Row:
    """One row of a decode step: the token that stands at `position` of the sequence in `slot`."""

    slot: int
    token: int
    position: int


@dataclass
class DecodeBucket:
    """Everything a decode step of `rows` rows works on, and the step itself."""

    rows: int
    state: Array  # [5, rows] int32: Step's ids, seqs, positions, visible, and Mail's place
    tokens: Array  # [rows] int32
    logits: Array  # [rows, V] float32
    program: Program


@dataclass
class Ticket:
    """A decode step that was launched. At most MAIL are open at a time."""

    device: Device
    bucket: DecodeBucket
    done: Any  # event recorded behind the step
    mail: np.ndarray  # [rows] int32, where the step leaves its tokens

    def tokens(self) -> np.ndarray:
        """[rows] int32, once the step is done. DeviceError if the work before failed."""
        self.device.wait(self.done)
        return self.mail.copy()

    def logits(self) -> np.ndarray:
        """[rows, V] float32; waits for all work, and must be asked before the next step is launched."""
        return self.device.read(self.bucket.logits[: len(self.mail)])


class Runner(BaseRunner[DecodeBucket]):
    """See the module. DeviceError if the device is too small, CaptureError if a step cannot be captured, RequestError
    for an encoder.

    w: what load.weights returned. progress(done, all) is called while buckets are prepared."""

    def __init__(
        self,
        ops: Ops,
        c: ModelConfig,
        w: Weights,
        e: EngineConfig,
        progress: Progress = silent,
    ) -> None:
        super().__init__(ops, c, w, e, causal=True)
        self.max_batch = self._spare = e.max_batch  # the sequences are 0 to max_batch - 1, then comes the spare one
        self.model = MODELS[c.arch]
        self.prefill_rows = min(e.prefill_rows, ops.pass_rows, pages_of(self.max_len) * PAGE * e.max_batch)
        whole = ops.buffers(c, PassKind.PREFILL, self.prefill_rows, min(PROMPTS, self.prefill_rows // PAGE))
        self._sampling = SlotSampling(self.device, e.max_batch, c.vocab)
        self._mail, self._box = self.device.pinned((e.max_batch, MAIL), np.dtype(np.int32))
        self._place = 0  # where in the mail the next step leaves its tokens
        sizes = [n for n in (1, 2, 4, 8, 16) if n < e.max_batch] + [e.max_batch]
        work = [self.decode_buffers(n) for n in sizes]
        self.table = PageTable(e.max_batch, self.max_len, 1 + self._cache_pages(e))
        shapes = [(self.table.pages, spec.kv_heads, PAGE, spec.head_dim) for spec in c.layers]
        self.caches = [Cache(*(self.device.empty(shape, ops.dtype) for _ in "kv")) for shape in shapes]
        self._table = self.device.upload(self.table.host)
        self.prompts = Prompts(self.ops, self._program, self._pass, whole, self._table, self._spare)
        self.steps_captured = CaptureReport()  # those of decode steps alone

        def prepare(rows: int, b: Buffers) -> None:
            self._buckets[rows] = self.prepare_steps(rows, b, e.graph)

        passes = self.prompts.sizes if e.graph != "off" else ()
        jobs = [partial(prepare, rows, b) for rows, b in zip(sizes, work, strict=True)]
        each([*jobs, *(partial(self.prompts.prepare, rows, e.graph) for rows in passes)], progress)
        self._current, self._rows = self._buckets[sizes[0]], 0
        if self.device.is_gpu:
            self._warm_prompts()

    @property
    def captured(self) -> CaptureReport:
        """What making all graphs took, those of prompts included."""
        return self.steps_captured + self.prompts.captured

    @property
    def current(self) -> DecodeBucket:
        """What decode() launches for the rows of set_rows()."""
        return self._current

    # -- steps ----------------------------------------------------------------------------------------------------

    def admit(self, sequences: list[Sequence]) -> None:
        """Tell the device how newly admitted sequences sample and where their pages are."""
        self._sampling.set(sequences)
        self._write_table()

    def prefill(self, chunks: list[Chunk]) -> tuple[np.ndarray, np.ndarray | None]:
        """Run prompt chunks in one pass. (tokens, logits) of those that end their prompt, in order; waits for them.

        tokens [n] int32; logits [n, V] float32 or None when none of those sequences wants logprobs."""
        pieces = [Piece(k.seq.slot, k.seq.prompt[k.first : k.last], k.first) for k in chunks]
        ends = [i for i, k in enumerate(chunks) if k.ends]
        b, s = self.prompts.run(pieces, ends)
        if not ends:
            return np.empty(0, np.int32), None
        self.ops.sample(b.logits, s, self._sampling.arrays, b.tokens, b.scratch)
        wanted = any(k.ends and k.seq.params.logprobs is not None for k in chunks)
        return self.device.read(b.tokens), self.device.read(b.logits) if wanted else None

    def set_rows(self, rows: list[Row]) -> None:
        """Set the rows of the decode steps to come. Their sequences are admitted, all earlier tokens in the cache."""
        self._current = self._bucket_of(len(rows))
        self._rows = len(rows)
        state = self._spare_state(self._current.rows)
        for i, row in enumerate(rows):
            state[:4, i] = row.token, row.slot, row.position, row.position + 1
        self.device.write(self._current.state, state)

    def decode(self) -> Ticket:
        """Launch one step for the rows of set_rows(), which then stand one token further; does not wait.

        Keeps a mirror of the place that the device counts in Mail: whoever runs the program otherwise must call
        set_rows() again."""
        self._current.program.run()
        mail = self._mail[: self._rows, self._place]
        self._place = (self._place + 1) % MAIL
        return Ticket(self.device, self._current, self.device.record_event(), mail)

    def logits(self, ids: list[int], decode_from: int | None = None, slot: int = 0) -> np.ndarray:
        """[T, V] float32: row t is what follows ids[:t + 1]. The slot has pages for all of them.

        All rows by prefill, or with decode_from = n only the first n, and each later token by a decode step, with its
        head_bias."""
        known = len(ids) if decode_from is None else decode_from
        self._write_table()
        rows = [*self._evaluate(ids[:known], slot)]
        for position in range(known, len(ids)):
            self.set_rows([Row(slot, ids[position], position)])
            rows.append(self.decode().logits())
        return np.concatenate(rows)

    # -- inside ---------------------------------------------------------------------------------------------------

    def _evaluate(self, ids: list[int], slot: int) -> Iterator[np.ndarray]:
        """Logits of ids in order, in pieces: the body once per prefill_rows, then the head for a tile at a time."""
        tile = self.ops.tile
        out = self.device.empty((tile, self.c.vocab), np.dtype(np.float32))
        plain = replace(self.w, head_bias=None)
        for first in range(0, len(ids), self.prefill_rows):
            piece = ids[first : first + self.prefill_rows]
            b, s = self.prompts.run([Piece(slot, piece, first)])
            for row in range(0, len(s.ids), tile):
                wanted = self.device.upload(np.arange(row, row + tile, dtype=np.int32))
                self.model.head(self.ops, self.c, plain, replace(b, logits=out), replace(s, last=wanted))
                yield self.device.read(out)[: len(piece) - row]

    def _warm_prompts(self) -> None:
        """Compile the kernels of prompts, which would else count as the first request's time: one spare tile."""
        b, s = self.prompts.run([Piece(self._spare, [0])], [0])
        self.ops.sample(b.logits, s, self._sampling.arrays, b.tokens, b.scratch)
        self.device.synchronize()

    def _pass(self, ops: Ops, b: Buffers, s: Step) -> list[Part]:
        """The forward pass over ops: embed, layers and head."""
        return _named(self.model.parts(ops, self.c, self.w, b, s, self.caches))

    def decode_buffers(self, rows: int) -> Buffers:
        """Activations for decode steps of `rows` rows: one group of them, as prepare_steps takes it."""
        group = min(rows, DECODE_ROWS)
        return self.ops.buffers(self.c, PassKind.DECODE, group, group)

    def prepare_steps(self, rows: int, b: Buffers, scope: str) -> DecodeBucket:
        """Prepare decode steps of `rows` (at most max_batch) rows: groups of DECODE_ROWS that share the activations b.

        The runner has one for each size; a further one, with a state of its own, is for whoever measures."""
        device, i32 = self.device, np.dtype(np.int32)
        state = device.upload(self._spare_state(rows))
        grouped = rows > DECODE_ROWS
        tokens = device.empty((rows,), i32) if grouped else b.tokens
        logits = device.empty((rows, self.c.vocab), np.dtype(np.float32)) if grouped else b.logits
        groups = []
        for a in range(0, rows, DECODE_ROWS):
            z = min(a + DECODE_ROWS, rows)
            last = device.upload(np.arange(z - a, dtype=np.int32))
            s = Step(*(state[i, a:z] for i in range(4)), table=self._table, last=last, kind=PassKind.DECODE)
            mail = Mail(self._box[a:z], state[4, a:z])
            groups.append((b.first(z - a, logits=logits[a:z], tokens=tokens[a:z]), s, mail))
        make = partial(self._parts, groups)
        step = self._program(device, self.ops, make, scope, f"graph {scope}, bucket {rows}", self.steps_captured)
        return DecodeBucket(rows, state, tokens, logits, step)

    def _spare_state(self, rows: int) -> np.ndarray:
        """[5, rows] int32, DecodeBucket.state: spare rows, and where the next step leaves tokens."""
        return np.vstack([spare_rows(rows, self._spare), np.full((1, rows), self._place, np.int32)])

    def _parts(self, groups: list[tuple[Buffers, Step, Mail]], ops: Ops) -> Iterator[Part]:
        """A decode step from embedding to next token over ops, in named parts."""
        for b, s, mail in groups:
            *body, (name, head) = self._pass(ops, b, s)
            yield from body
            yield name, partial(_head, ops, head, b, s, self._sampling.arrays, mail)

    def _write_table(self) -> None:
        if self.table.changed:
            self.device.write(self._table, self.table.host)
            self.table.changed = False

    def _cache_pages(self, e: EngineConfig) -> int:
        """Pages for the sequences: cache_tokens, or what max_batch of max_len need, less if memory is short."""
        c, wish = self.c, self.max_batch * pages_of(self.max_len)
        page = 2 * sum(spec.kv_heads * spec.head_dim for spec in c.layers) * PAGE * self.ops.dtype.itemsize
        free = self.device.free_memory()
        share = _SHARE[self.device.is_gpu] if e.cache_tokens is None else 1
        room = int(free * share) // page - 1  # one more page is the spare sequence's
        pages = min(wish, max(room, 1)) if e.cache_tokens is None else pages_of(e.cache_tokens)
        if pages > room:
            raise DeviceError(f"key/value cache: expected {(pages + 1) * page >> 20} MiB free on {self.device.name}, "
                              f"found {free >> 20} MiB")  # fmt: skip
        return pages


def _named(parts: Iterable[Callable[[], None]]) -> list[Part]:
    """The parts of a forward pass with the names that messages and profilers show."""
    embed, *layers, head = parts
    return [("embed", embed), *((f"layer {i}", layer) for i, layer in enumerate(layers)), ("head", head)]


def _head(ops: Ops, head: Callable[[], None], b: Buffers, s: Step, sampling: Sampling, mail: Mail) -> None:
    """The last part of a step: logits, the next tokens, and those as the next step's input and to the host."""
    head()
    ops.sample(b.logits, s, sampling, b.tokens, b.scratch)
    ops.advance(s, b.tokens, mail)
