"""From sequences to tokens: admit, prefill, decode, one step ahead of the host. Called by llm.py.

While the host looks at the tokens of a step, the device already works on the next one, which needs nothing from the
host as long as the same sequences go on. A sequence that turns out to have ended with the earlier step has one token
too many in the later one: it is dropped. Nobody else's numbers depend on it, so the results are those without looking
ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import DeviceError
from .runner import Row, Runner, Ticket
from .scheduler import Scheduler, Sequence


@dataclass
class Event:
    """One new token of a sequence; seq.finish_reason tells whether it was the last."""

    seq: Sequence
    token: int
    logits: np.ndarray | None  # [V] float32, if the sequence wants logprobs


class Loop:
    """One run over a set of sequences on a runner that nobody else uses meanwhile. lookahead: False for tests.

    progress(done, all) is told of the tokens of the prompts that are run together."""

    def __init__(
        self,
        runner: Runner,
        lookahead: bool = True,
        progress: Callable[[int, int], None] = lambda done, all: None,
    ) -> None:
        self.runner, self.lookahead, self._progress = runner, lookahead, progress
        self.scheduler = Scheduler(runner.slots, runner.prefill_rows, runner.table)
        self._flight: deque[tuple[Ticket, list[Sequence]]] = deque()
        self._started: list[Sequence] = []  # whose rows stand on the device

    def run(self, sequences: list[Sequence]) -> Generator[Event, None, None]:
        """Tokens as they come, until all have ended. The caller may end a sequence with scheduler.finish on its event.

        Frees all pages at the end, also when closed early or at an error. CacheFull if a sequence can never fit."""
        try:
            for seq in sequences:
                self.scheduler.add(seq)
            while True:
                if not self._flight:
                    yield from self._fill()
                    if not self.scheduler.running:
                        return
                    self._launch()
                ticket, rows = self._flight.popleft()
                if self._may_go_on(rows):
                    self._launch()
                yield from self._take(ticket, rows)
        finally:
            self.scheduler.clear()

    def _fill(self) -> Iterator[Event]:
        """Admit who can be, and run prompts until every running sequence has its first token."""
        scheduler, done = self.scheduler, 0
        while True:
            admitted = scheduler.admit()
            if admitted:
                self.runner.admit(admitted)
            chunks = scheduler.prefill()
            if not chunks:
                return
            whole = done + sum(len(seq.prompt) - seq.prefilled for seq in scheduler.running)
            self._progress(done, whole)
            tokens, logits = self.runner.prefill(chunks)
            scheduler.filled(chunks)
            done += sum(chunk.last - chunk.first for chunk in chunks)
            self._progress(done, whole)
            done %= whole  # with prompts that take the place of those that have ended, it begins again
            ended = [chunk.seq for chunk in chunks if chunk.ends]
            for i, (seq, token) in enumerate(zip(ended, tokens.tolist(), strict=True)):
                yield self._event(seq, token, None if logits is None else logits[i])

    def _launch(self) -> None:
        """Launch a decode step for the running sequences, whose rows go to the device first if they have changed."""
        rows = list(self.scheduler.running)
        if rows != self._started:
            self.runner.start([Row(seq.slot, seq.tokens[-1], len(seq.prompt) + len(seq.tokens) - 1) for seq in rows])
            self._started = rows
        ticket = self.runner.decode()
        for seq in rows:
            seq.ahead += 1
        self._flight.append((ticket, rows))

    def _may_go_on(self, rows: list[Sequence]) -> bool:
        """Whether a step can follow before the tokens of the one in flight are known."""
        wants_logits = any(seq.params.logprobs is not None for seq in rows)  # the next step overwrites them
        return self.lookahead and not wants_logits and rows == self.scheduler.running and self.scheduler.steady()

    def _take(self, ticket: Ticket, rows: list[Sequence]) -> Iterator[Event]:
        """Wait for a step and hand out its tokens; those of sequences that have ended are dropped."""
        tokens = ticket.tokens().tolist()
        wanted = any(seq.params.logprobs is not None for seq in rows)
        logits = ticket.logits() if wanted else None
        for seq in rows:
            seq.ahead -= 1
        for i, seq in enumerate(rows):
            if seq.finish_reason is None:
                yield self._event(seq, tokens[i], None if logits is None else logits[i])

    def _event(self, seq: Sequence, token: int, logits: np.ndarray | None) -> Event:
        if token < 0:
            raise DeviceError(f"sampling: expected finite logits, found none after {len(seq.prompt)} tokens of prompt "
                              f"and {len(seq.tokens)} generated")  # fmt: skip
        self.scheduler.accept(seq, token)
        return Event(seq, token, logits if seq.params.logprobs is not None else None)
