"""The batch of running sequences: launches prefill passes and decode steps, and reads their tokens. For one thread.

One-step-ahead scheduling: the host launches the next pass before it reads the tokens of the current one. A decode step
needs nothing from the host as long as its sequences stay the same. If a sequence turns out to have ended, its token of
the step launched ahead is dropped; no other sequence depends on it.

While any sequence decodes, prefill passes and decode steps alternate, and a prefill pass has at most BETWEEN rows. So a
long prompt delays the next token of a stream by one such pass at most.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np

from ..errors import DeviceError, EngineError, RequestError
from ..process import forks
from .base_runner import Progress, silent
from .runner import Row, Runner, Ticket
from .scheduler import Scheduler
from .sequence import Event, Sequence

BETWEEN = 512  # rows of a prefill pass while any sequence decodes: graphs go so far, and it takes a few steps' time


class Launched(NamedTuple):
    """A pass that was launched and not read yet."""

    ticket: Ticket
    rows: list[Sequence]  # the sequences that get a token from it, in order
    wants_logits: bool  # for logprobs: the next pass of the same kind overwrites them
    filled: int = 0  # prompt tokens that it adds to the KV cache; 0 for a decode step


class Batch:
    """A runner of its own, a scheduler for it, and the passes in flight.

    lookahead: one-step-ahead scheduling; False for tests. progress(done, all): called with prompt tokens."""

    def __init__(self, runner: Runner, lookahead: bool = True, progress: Progress = silent) -> None:
        self.runner, self.lookahead, self._progress = runner, lookahead, progress
        self._filled = 0  # prompt tokens done since progress was at 0
        self.scheduler = Scheduler(runner.max_batch, runner.table, runner.swap, runner.prefix, runner.window)
        self._flight: deque[Launched] = deque()
        self._started: list[Sequence] = []  # the sequences whose rows are on the device
        self._sure = 0  # further steps of these rows that need no new page and reach no row's max_tokens
        self._wants = False  # whether any of these wants logprobs
        self._prefilled = False  # whether the last pass launched was a prefill pass

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do: no sequence waits or runs, and no pass is in flight."""
        return not self._flight and self.scheduler.idle

    def step(self, drain: bool = False) -> list[Event]:
        """Launch passes, at most one ahead, then wait for the oldest one. Returns its tokens as events, perhaps none.

        drain: start no sequence and launch no pass ahead, so that a caller finds room between two steps."""
        if not drain:
            self._admit()
        ahead = self.lookahead and not drain
        while len(self._flight) < 1 + ahead and self._launch():
            pass
        return self._read(self._flight.popleft()) if self._flight else []

    def end(self, seq: Sequence, reason: str) -> Event:
        """End a sequence, waiting or running, and free its slot and pages immediately."""
        self.scheduler.release(seq)
        return seq.end(reason)

    def clear(self) -> None:
        """Release all sequences and drop the passes in flight, after an error."""
        self._flight.clear()
        self._started = []
        self._progress(self._filled, self._filled)
        self._filled = 0
        self.scheduler.clear()

    def forked(self) -> EngineError:
        """In a forked child: the error for the sequences that were running."""
        device = self.runner.device
        if device.is_gpu:
            forks.never_destroy(tuple(self._flight))
        try:
            device.check()
        except DeviceError as e:
            return e
        return RequestError("request: expected the process that began it, found one forked from it; begin another")

    def logits(self, ids: list[int], decode_from: int | None = None) -> np.ndarray | None:
        """[T, V] float32, as Runner.logits; None while a pass is in flight, or without a free slot and pages.

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
            self._started = []  # they were overwritten
            self.scheduler.give_back(slot)

    def _admit(self) -> None:
        """Start waiting sequences, or resume preempted ones, as far as there is room."""
        admitted = self.scheduler.admit()
        if not admitted:
            return
        for seq in admitted:
            if (copies := self.scheduler.resume(seq)) is not None:
                self.runner.swap_in(copies)
        self.runner.set_sampling(admitted)

    def _launch(self) -> bool:
        """Launch a prefill pass or a decode step; False if neither is possible before the pass in flight is read."""
        while self.scheduler.running:
            decoding = self.scheduler.decoding
            if self._flight and self._flight[-1].wants_logits:
                return False
            if not (decoding and self._prefilled) and self._launch_prefill(bool(decoding)):
                return True
            if decoding and self._launch_decode(decoding):
                return True
            if self._flight:
                return False
            self._preempt()  # only pages can be missing here
        return False

    def _launch_prefill(self, between: bool) -> bool:
        """Launch a prefill pass. between: sequences wait for the next decode step."""
        rows = self.runner.prefill_rows
        chunks = self.scheduler.prefill(min(BETWEEN, rows) if between else rows)
        if not chunks:
            return False
        done = sum(chunk.last - chunk.first for chunk in chunks)
        self._tell_progress(0, done)
        ticket, rows = self.runner.prefill(chunks), [chunk.seq for chunk in chunks if chunk.ends]
        self._flight.append(Launched(ticket, rows, _want_logits(rows), done))
        self._prefilled = True
        return True

    def _launch_decode(self, rows: list[Sequence]) -> bool:
        """Launch a decode step for these sequences; False if that is not possible now."""
        if rows == self._started and self._sure:
            self._sure -= 1
        elif not self._start(rows):
            return False
        ticket = self.runner.decode()
        for seq in rows:
            seq.ahead += 1
        self._flight.append(Launched(ticket, rows, self._wants))
        self._prefilled = False
        return True

    def _start(self, rows: list[Sequence]) -> bool:
        """Give the rows pages for a step, and write them to the device if they changed; False if impossible now."""
        if any(seq.ahead for seq in rows) and (rows != self._started or any(_left(seq) < 1 for seq in rows)):
            return False
        if not self.scheduler.grow(rows):
            return False
        if rows != self._started:
            self.runner.set_rows([Row(s.slot, s.tokens[s.computed - 1], s.length - 1) for s in rows])
            self._started, self._wants = rows, _want_logits(rows)
        self._sure = min(min(self.scheduler.spare(seq), _left(seq) - 1) for seq in rows)
        return True

    def _preempt(self) -> None:
        """Preempt a sequence. No pass is in flight."""
        self._started = []  # it may come back with another slot
        if (copies := self.scheduler.preempt()) is not None:
            self.runner.swap_out(copies)

    def _tell_progress(self, done: int, under_way: int) -> None:
        """Report progress. done: prompt tokens of a pass just read; under_way: those of a pass being launched."""
        left = sum(len(seq.prompt) - seq.prefilled for seq in self.scheduler.running)
        left += under_way + sum(launched.filled for launched in self._flight)
        self._filled += done
        self._progress(self._filled, self._filled + left)
        if not left:
            self._filled = 0

    def _read(self, launched: Launched) -> list[Event]:
        """Wait for a pass and accept its tokens; those of sequences that have ended are dropped."""
        tokens = launched.ticket.tokens().tolist()
        logits = launched.ticket.logits() if launched.wants_logits else None
        if launched.filled:
            self._tell_progress(launched.filled, 0)
        else:
            for seq in launched.rows:
                seq.ahead -= 1
        return self._accept(launched.rows, tokens, logits)

    def _accept(self, rows: list[Sequence], tokens: list[int], logits: np.ndarray | None) -> list[Event]:
        """Give each sequence its next token; release those that end."""
        events = []
        for i, (seq, token) in enumerate(zip(rows, tokens, strict=True)):
            if seq.finish_reason is not None:
                continue
            if token < 0:
                events.append(self._no_token(seq))
                continue
            seq.computed += 1
            if seq.computed <= len(seq.tokens):
                events += self._replayed(seq, token)
                continue
            event = seq.accept(token, None if seq.params.logprobs is None or logits is None else logits[i])
            if event.finish_reason is not None:
                self.scheduler.release(seq)
            events.append(event)
        return events

    def _no_token(self, seq: Sequence) -> Event:
        """End a sequence whose logits are not finite with an error; the others go on."""
        seq.error = DeviceError(
            f"sampling: expected finite logits, found none after {len(seq.prompt)} tokens of prompt "
            f"and {len(seq.tokens)} generated"
        )
        return self.end(seq, "error")

    def _replayed(self, seq: Sequence, token: int) -> list[Event]:
        """Check a token of a replay against the one that was given out. On a backend that is not exact (Ops.exact) they
        may differ; then the sequence ends with an error, as its text cannot be continued."""
        expected = seq.tokens[seq.computed - 1]
        if token == expected:
            return []
        seq.error = DeviceError(f"replay after preemption: expected token {expected} as number {seq.computed}, "
                                f"found {token}; a larger swap_gb avoids replays")  # fmt: skip
        return [self.end(seq, "error")]


def _want_logits(rows: list[Sequence]) -> bool:
    """Whether any of the sequences wants logprobs."""
    return any(seq.params.logprobs is not None for seq in rows)


def _left(seq: Sequence) -> int:
    """Tokens that it may still get beyond the steps in flight."""
    return seq.max_tokens - seq.computed - seq.ahead
