"""Weights, buffers, KV cache and graphs of one decoder on one device: prefill(chunks), set_rows(rows), decode().

With prefill.py, which runs the prompts, it holds all device memory. It knows nothing of text, of waiting requests, or
of when a sequence ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..config import EngineConfig, ModelConfig
from ..graph.capture import CaptureReport, Part, Program
from ..models import MODELS
from ..models.weights import Weights
from ..ops.base import Array, Buffers, Cache, Mail, Ops, PassKind, Sampling, Step
from ..ops.device import Device, headers_hash
from ..sizes import DECODE_ROWS, MAIL, PAGE, PROMPTS
from . import memory, prefix
from .base_runner import BaseRunner, Progress, each, silent
from .cache import PageTable, pages_of
from .passes import Piece, spare_rows
from .prefill import Prompts
from .scheduler import Chunk, Copies
from .sequence import Sequence
from .slots import SlotSampling


@dataclass(frozen=True)
class Row:
    """One row of a decode step: the token at `position` of the sequence in `slot`."""

    slot: int
    token: int
    position: int


@dataclass
class DecodeBucket:
    """A decode step of `rows` rows: its arrays and its program."""

    rows: int
    state: Array  # [5, rows] int32: Step's ids, seqs, positions, visible, and Mail's place
    tokens: Array  # [rows] int32
    logits: Array  # [rows, V] float32
    program: Program


@dataclass
class Ticket:
    """A launched pass. At most MAIL decode steps, and as many prefill passes, may be unread at a time."""

    device: Device
    done: Any  # event recorded behind the pass
    mail: np.ndarray  # [rows] int32 in pinned memory, where the pass writes its tokens
    scores: Array  # [rows, V] float32 of the device: the logits

    def tokens(self) -> np.ndarray:
        """[rows] int32; waits for the pass. DeviceError if it or earlier work failed."""
        self.device.wait(self.done)
        return self.mail.copy()

    def logits(self) -> np.ndarray:
        """[rows, V] float32; waits for all work. Call it before the next pass of the same kind is launched."""
        return self.device.read(self.scores)


class Runner(BaseRunner[DecodeBucket]):
    """A decoder on a device. DeviceError if memory is short, CaptureError if a step cannot be captured, RequestError
    for an encoder.

    w: from load.weights. progress(done, all): called while buckets are prepared."""

    def __init__(
        self,
        ops: Ops,
        c: ModelConfig,
        w: Weights,
        e: EngineConfig,
        progress: Progress = silent,
    ) -> None:
        super().__init__(ops, c, w, e, causal=True)
        # Slots 0 .. max_batch - 1 are for sequences; the padding sequence has the next one.
        self.max_batch = self._spare = e.max_batch
        self.model = MODELS[c.arch]
        self.prefill_rows = min(e.prefill_rows, ops.pass_rows, pages_of(self.max_len) * PAGE * e.max_batch)
        whole = ops.buffers(c, PassKind.PREFILL, self.prefill_rows, min(PROMPTS, self.prefill_rows // PAGE))
        self._sampling = SlotSampling(self.device, e.max_batch, c.vocab)
        self._mail, self._box = self.device.pinned((e.max_batch, MAIL), np.dtype(np.int32))
        self._place = 0  # the entry of the token ring buffer that the next step writes
        self._first_tokens = FirstTokens(ops, whole, e.max_batch)
        sizes = [n for n in (1, 2, 4, 8, 16) if n < e.max_batch] + [e.max_batch]
        work = [self.decode_buffers(n) for n in sizes]
        self.memory = memory.plan(ops, c, e, self.max_len, (w,), (whole, *work))
        self.table = PageTable(e.max_batch, self.max_len, self.memory.pages)
        self.pool = self.device.empty(self.memory.shape, ops.dtype)
        self.caches = [Cache(*self.pool[2 * i : 2 * i + 2]) for i in range(c.layer_count)]
        self.swap = memory.swap_space(self.device, e, self.memory, ops.dtype)
        self.window = 0 if any(not spec.window for spec in c.layers) else max(spec.window for spec in c.layers)
        self.prefix = _prefix(ops, c) if e.prefix_cache and ops.exact else None
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
        """Number, seconds and bytes of all graphs, including those of prompts."""
        return self.steps_captured + self.prompts.captured

    @property
    def current(self) -> DecodeBucket:
        """The bucket that decode() launches, chosen by set_rows()."""
        return self._current

    # -- steps ----------------------------------------------------------------------------------------------------

    def set_sampling(self, sequences: list[Sequence]) -> None:
        """Write the sampling rules of admitted sequences to the device, and the token counts of resumed ones."""
        self._sampling.set(sequences)

    def prefill(self, chunks: list[Chunk]) -> Ticket:
        """Launch one prefill pass over chunks; does not wait. The ticket has a token for each chunk that ends its
        prompt, in order."""
        self._write_table()
        pieces = [Piece(k.seq.slot, k.seq.prompt[k.first : k.last], k.first) for k in chunks]
        ends = [i for i, k in enumerate(chunks) if k.ends]
        b, s = self.prompts.run(pieces, ends)
        if ends:
            self.ops.sample(b.logits, s, self._sampling.arrays, b.tokens, b.scratch)
        mail = self._first_tokens.send(len(ends))
        return Ticket(self.device, self.device.record_event(), mail, b.logits)

    def swap_out(self, copies: Copies) -> None:
        """Launch copies of pages to host memory; does not wait."""
        self._swap(copies, self.ops.save_pages)

    def swap_in(self, copies: Copies) -> None:
        """Launch copies of pages from host memory; does not wait."""
        self._swap(copies, self.ops.load_pages)

    def set_rows(self, rows: list[Row]) -> None:
        """Set the rows of the next decode steps. All earlier tokens of their sequences are in the KV cache."""
        self._current = self._bucket_of(len(rows))
        self._rows = len(rows)
        state = self._spare_state(self._current.rows)
        for i, row in enumerate(rows):
            state[:4, i] = row.token, row.slot, row.position, row.position + 1
        self.device.write(self._current.state, state)

    def decode(self) -> Ticket:
        """Launch one decode step and move the rows of set_rows() on by one token; does not wait. Their sequences have
        pages for it.

        Mirrors the write index of the token ring buffer, which the device counts: call set_rows() again after running
        the program by other means."""
        self._write_table()
        self._current.program.run()
        mail = self._mail[: self._rows, self._place]
        self._place = (self._place + 1) % MAIL
        return Ticket(self.device, self.device.record_event(), mail, self._current.logits[: self._rows])

    def logits(self, ids: list[int], decode_from: int | None = None, slot: int = 0) -> np.ndarray:
        """[T, V] float32: row t is what follows ids[:t + 1]. The slot has pages for all of them.

        All tokens are prefilled, or with decode_from = n the first n, and each later one is a decode step. Rows of
        decode steps include head_bias, which bans tokens that the tokenizer lacks; rows of prefill do not."""
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
        """Compile the prefill kernels by one tile of padding rows, so that the first request need not wait for it."""
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

        The runner keeps one for each size; benchmarks prepare further ones with a state of their own."""
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
        """[5, rows] int32, DecodeBucket.state: padding rows, and the write index of the token ring buffer."""
        return np.vstack([spare_rows(rows, self._spare), np.full((1, rows), self._place, np.int32)])

    def _parts(self, groups: list[tuple[Buffers, Step, Mail]], ops: Ops) -> Iterator[Part]:
        """A decode step from embedding to next token over ops, in named parts."""
        for b, s, mail in groups:
            *body, (name, head) = self._pass(ops, b, s)
            yield from body
            yield name, partial(_head, ops, head, b, s, self._sampling.arrays, mail)

    def _write_table(self) -> None:
        for slot in self.table.stale:
            self.device.write(self._table[slot], self.table.host[slot])
        self.table.stale.clear()

    def _swap(self, copies: Copies, copy: Callable[[Array, Array, Array, Array], None]) -> None:
        assert self.swap is not None
        for block, pages, places in self.swap.by_block(*copies):
            there = (self.device.upload(np.array(numbers, np.int32)) for numbers in (pages, places))
            copy(self.pool, block, *there)


class FirstTokens:
    """The token ring buffer of prefill passes: reading a pass's tokens waits for nothing that was launched later.

    b: the buffers of prefill passes. spare: the slot of the padding sequence."""

    def __init__(self, ops: Any, b: Buffers, spare: int) -> None:
        i32, rows = np.dtype(np.int32), len(b.tokens)
        self._ops, self._tokens = ops, b.tokens
        self._mail, box = ops.device.pinned((rows, MAIL), i32)
        zeros = ops.device.upload(np.zeros((5, rows), np.int32))
        table = ops.device.empty((spare + 1, 1), i32)  # its length tells `advance` the padding sequence
        ops.device.write(b.tokens, np.zeros(rows, np.int32))
        self._step = Step(*(zeros[i] for i in range(4)), table=table, last=zeros[4], kind=PassKind.DECODE)
        self._box, self._place = Mail(box, zeros[4]), 0

    def send(self, rows: int) -> np.ndarray:
        """Launch the copy of the first `rows` tokens. Returns [rows] int32 in pinned memory, where they will be."""
        if not rows:
            return self._mail[:0, 0]
        place = np.full(len(self._tokens), self._place, np.int32)  # each time: an interrupted pass may have moved it
        self._ops.device.write(self._box.place, place)
        self._ops.advance(self._step, self._tokens, self._box)
        mail = self._mail[:rows, self._place]
        self._place = (self._place + 1) % MAIL
        return mail


def _prefix(ops: Ops, c: ModelConfig) -> bytes:
    """The root of the prefix cache's hash chains."""
    return prefix.root(repr(c), ops.name, ops.dtype.name, headers_hash())


def _named(parts: Iterable[Callable[[], None]]) -> list[Part]:
    """The parts of a forward pass, named for messages and profilers."""
    embed, *layers, head = parts
    return [("embed", embed), *((f"layer {i}", layer) for i, layer in enumerate(layers)), ("head", head)]


def _head(ops: Ops, head: Callable[[], None], b: Buffers, s: Step, sampling: Sampling, mail: Mail) -> None:
    """The last part of a decode step: logits, sampling, and the tokens to the next step's input and to the host."""
    head()
    ops.sample(b.logits, s, sampling, b.tokens, b.scratch)
    ops.advance(s, b.tokens, mail)
