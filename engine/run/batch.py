"""The sequences that run together: one pass over prompts, or one decode step, at a time. For one thread.

One-step-ahead scheduling: while the host looks at the tokens of a step, the device already works on the next one, which
needs nothing from the host as long as the same sequences go on. A sequence that turns out to have ended with the
earlier step has one token too many in the later one: it is dropped. No number of anybody else depends on it. No step is
launched ahead while a sequence waits that could start.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from ..errors import DeviceError, EngineError, RequestError
from ..process import forks
from .base_runner import Progress, silent
from .runner import Row, Runner, Ticket
from .scheduler import Chunk, Scheduler
from .sequence import Event, Sequence


class Batch:
    """The scheduler of a runner that nobody else uses, and the decode steps under way. lookahead: False for tests.

    progress(done, all) is told of the tokens of the prompts that are run together."""

    def __init__(self, runner: Runner, lookahead: bool = True, progress: Progress = silent) -> None:
        self.runner, self.lookahead, self._progress = runner, lookahead, progress
        self._filled = 0  # tokens of prompts since progress began with 0
        self.scheduler = Scheduler(runner.max_batch, runner.prefill_rows, runner.table)
        self._flight: deque[tuple[Ticket, list[Sequence]]] = deque()
        self._started: list[Sequence] = []  # whose rows stand on the device

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: nobody waits or runs, no step is under way."""
        return not self._flight and self.scheduler.idle

    def step(self, drain: bool = False) -> list[Event]:
        """Run one pass over prompts if any can start, else a decode step. [] if neither completed a token.

        drain: for whoever waits for room between two steps: nobody begins, and no step is launched ahead."""
        if not self._flight:
            admitted = [] if drain else self.scheduler.admit()
            if admitted:
                self.runner.admit(admitted)
            if chunks := self.scheduler.prefill():
                return self._prefill(chunks)
            if not self.scheduler.running:
                return []
            self._launch()
        ticket, rows = self._flight.popleft()
        if not drain and self._may_launch_ahead(rows):
            self._launch()
        return self._read(ticket, rows)

    def end(self, seq: Sequence, reason: str) -> Event:
        """End a sequence that waits or runs; its slot and pages are free at once."""
        self.scheduler.release(seq)
        return seq.end(reason)

    def clear(self) -> None:
        """Release everybody and forget what is under way: after an error."""
        self._flight.clear()
        self._started = []
        self._progress(self._filled, self._filled)
        self._filled = 0
        self.scheduler.clear()

    def forked(self) -> EngineError:
        """In a forked child: why the sequences that were running cannot go on."""
        device = self.runner.device
        if device.is_gpu:
            forks.never_destroy(tuple(self._flight))
        try:
            device.check()
        except DeviceError as e:
            return e
        return RequestError("request: expected the process that began it, found one forked from it; begin another")

    def logits(self, ids: list[int], decode_from: int | None = None) -> np.ndarray | None:
        """[T, V] float32, as Runner.logits; None while a step is under way, or without a free slot and pages.

        RequestError for ids or decode_from out of range, CacheFull for more ids than the cache holds."""
        known, longest = len(ids) if decode_from is None else decode_from, self.runner.max_len
        if not 1 <= known <= len(ids) <= longest:
            raise RequestError(f"ids: expected 1 <= decode_from <= length <= {longest}, "
                               f"found {len(ids)} ids, decode_from {decode_from}")  # fmt: skip
        self.scheduler.table.check(len(ids))
        if self._flight or not self.scheduler.fits(len(ids)):
            return None
        slot = self.scheduler.lend(len(ids))
        try:
            return self.runner.logits(ids, decode_from, slot)
        finally:
            self._started = []  # other rows stood there meanwhile
            self.scheduler.give_back(slot)

    def _prefill(self, chunks: list[Chunk]) -> list[Event]:
        """One pass over prompts: the first tokens of those that it completes."""
        left = sum(len(seq.prompt) - seq.prefilled for seq in self.scheduler.running)
        self._progress(self._filled, self._filled + left)
        tokens, logits = self.runner.prefill(chunks)
        self.scheduler.filled(chunks)
        done = sum(chunk.last - chunk.first for chunk in chunks)
        self._progress(self._filled + done, self._filled + left)
        self._filled = self._filled + done if done < left else 0
        return self._accept([chunk.seq for chunk in chunks if chunk.ends], tokens.tolist(), logits)

    def _launch(self) -> None:
        """Launch a decode step for the running sequences, whose rows go to the device first if they have changed."""
        rows = list(self.scheduler.running)
        if rows != self._started:
            self.runner.set_rows([Row(seq.slot, seq.tokens[-1], len(seq.prompt) + len(seq.tokens) - 1) for seq in rows])
            self._started = rows
        ticket = self.runner.decode()
        for seq in rows:
            seq.ahead += 1
        self._flight.append((ticket, rows))

    def _may_launch_ahead(self, rows: list[Sequence]) -> bool:
        """Whether a step can follow before the tokens of the one in flight are known."""
        wants_logits = any(seq.params.logprobs is not None for seq in rows)  # the next step overwrites them
        return self.lookahead and not wants_logits and rows == self.scheduler.running and self.scheduler.steady()

    def _read(self, ticket: Ticket, rows: list[Sequence]) -> list[Event]:
        """Wait for a step; the tokens of sequences that have ended meanwhile are dropped."""
        tokens = ticket.tokens().tolist()
        wanted = any(seq.params.logprobs is not None for seq in rows)
        logits = ticket.logits() if wanted else None
        for seq in rows:
            seq.ahead -= 1
        return self._accept(rows, tokens, logits)

    def _accept(self, rows: list[Sequence], tokens: list[int], logits: np.ndarray | None) -> list[Event]:
        """Give the rows their next tokens; those that end are released."""
        events = []
        for i, (seq, token) in enumerate(zip(rows, tokens, strict=True)):
            if seq.finish_reason is not None:
                continue
            if token < 0:
                events.append(self._no_token(seq))
                continue
            event = seq.accept(token, None if seq.params.logprobs is None or logits is None else logits[i])
            if event.finish_reason is not None:
                self.scheduler.release(seq)
            events.append(event)
        return events

    def _no_token(self, seq: Sequence) -> Event:
        """Its logits are no numbers: it ends with an error, the others go on."""
        seq.error = DeviceError(
            f"sampling: expected finite logits, found none after {len(seq.prompt)} tokens of prompt "
            f"and {len(seq.tokens)} generated"
        )
        return self.end(seq, "error")
