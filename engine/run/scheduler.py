"""Which sequences wait, which run, and which rows go into the next pass.

Owns the slots and, through PageTable, the pages of the KV cache. Knows tokens and counts only: no arrays of the
device, no text, no threads. Never decides that a sequence has ended (sequence.py does): `release` frees what it held.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass

from ..sizes import PAGE, PROMPTS
from .cache import PageTable
from .sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Prompt tokens first..last-1 of a sequence, to be run in one prefill step."""

    seq: Sequence
    first: int
    last: int

    @property
    def rows(self) -> int:
        """Rows the chunk takes: whole tiles, so that no tile holds two sequences."""
        return -(-(self.last - self.first) // PAGE) * PAGE

    @property
    def ends(self) -> bool:
        """Whether the prompt is complete after it, so that a token is sampled."""
        return self.last == len(self.seq.prompt)


class Scheduler:
    """First come, first served. `slots` sequences run at once; a prefill step has at most `prefill_rows` rows."""

    def __init__(self, slots: int, prefill_rows: int, table: PageTable) -> None:
        self.table = table
        self.prefill_rows = prefill_rows
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of admission; the decode rows are those with a complete prompt
        self.slots = slots
        self._slots = list(range(slots))  # a heap: the lowest free slot first

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody runs."""
        return not self.running and not self.waiting

    def add(self, seq: Sequence) -> None:
        """Queue a sequence, which the whole cache can hold (PageTable.check)."""
        self.waiting.append(seq)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens could start now: a slot and its pages are free."""
        return bool(self._slots) and self.table.fits(tokens)

    def admissible(self) -> bool:
        """Whether the first of the queue could start now. Nobody overtakes it."""
        return bool(self.waiting) and self.fits(self.waiting[0].request.reserve)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to running, in order, while there are slots and pages; returns them."""
        admitted = []
        while self.admissible():
            seq = self.waiting.popleft()
            seq.slot = self.lend(seq.request.reserve)
            self.running.append(seq)
            admitted.append(seq)
        return admitted

    def lend(self, tokens: int) -> int:
        """A slot with pages for so many tokens; the caller has asked `fits`, and calls `give_back`."""
        self.table.admit(self._slots[0], tokens)
        return heapq.heappop(self._slots)

    def give_back(self, slot: int) -> None:
        """Free a slot and its pages."""
        self.table.release(slot)
        heapq.heappush(self._slots, slot)

    def prefill(self) -> list[Chunk]:
        """The next prefill step, [] if every running prompt is in the cache. Call `filled` once it is launched."""
        chunks: list[Chunk] = []
        room = self.prefill_rows
        for seq in self.running:
            if seq.prefilled < len(seq.prompt) and room and len(chunks) < PROMPTS:
                chunks.append(Chunk(seq, seq.prefilled, min(seq.prefilled + room, len(seq.prompt))))
                room -= chunks[-1].rows
        return chunks

    def filled(self, chunks: list[Chunk]) -> None:
        """The chunks' keys and values are in the cache (or will be before any later step)."""
        for chunk in chunks:
            chunk.seq.prefilled = chunk.last

    def steady(self) -> bool:
        """Whether the rows of the next step are known before the tokens of the one in flight are: nobody is certain to
        end with it, and nobody waits who could start."""
        return not self.admissible() and all(len(seq.tokens) + seq.ahead < seq.max_tokens for seq in self.running)

    def release(self, seq: Sequence) -> None:
        """Free what a sequence holds, running or waiting."""
        if seq.slot < 0:
            self.waiting.remove(seq)
            return
        self.running.remove(seq)
        self.give_back(seq.slot)
        seq.slot = -1

    def clear(self) -> None:
        """Release everybody. Begins anew: whatever was broken off may have been half done."""
        for seq in self.running:
            seq.slot = -1
        self.running, self._slots = [], list(range(self.slots))
        self.waiting.clear()
        self.table.clear()
