"""Which sequences wait, which run, and which rows go into the next pass.

Owns the slots and, through PageTable, the pages of the KV cache. Knows tokens and counts only: no arrays of the
device, no text, no threads. Never decides that a sequence has ended (sequence.py does): `release` frees what it held.

A sequence begins when its prompt finds pages, and grows while it runs. If the pages run out, the sequence that is least
urgent and came last is preempted: its pages go to host memory (swap.py) and come back, in whatever places, before it
goes on. If there is no room in host memory either, it begins anew with its prompt, and what it has generated is
generated once more, by decode steps as before. Both leave every bit as it would have been: a page is copied as it is,
and the steps are the same. To compute generated tokens by a prefill pass would not: it sums up in another order.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

from ..sizes import PAGE, PROMPTS
from . import prefix
from .cache import PageTable, pages_of
from .sequence import Sequence
from .swap import SwapSpace
from .waiting import Waiting

HEADROOM = 4  # pages that a preempted sequence must find beyond those it needs: else it would soon be preempted again


class Chunk(NamedTuple):
    """Prompt tokens first..last-1 of a sequence, to be run in one prefill pass."""

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


class Copies(NamedTuple):
    """Pages of the KV cache and the places in host memory that they are copied to, or from."""

    pages: list[int]
    places: list[int]


@dataclass
class Counters:
    """What has happened since the engine was made."""

    prompt_tokens: int = 0  # of sequences that began, those preempted and begun anew not counted again
    cached_tokens: int = 0  # of these, found in the prefix cache
    preempted: int = 0  # sequences that had to make room
    swapped: int = 0  # of these, to host memory
    replayed: int = 0  # of these, begun anew


class Scheduler:
    """`slots` sequences run at once. beginning: of the keys of the prefix cache (prefix.root); None is without one.
    window: tokens that any layer sees; 0 if one sees all."""

    def __init__(
        self,
        slots: int,
        table: PageTable,
        swap: SwapSpace | None = None,
        beginning: bytes | None = None,
        window: int = 0,
        waiting: Waiting | None = None,
    ) -> None:
        self.table, self.swap, self.window = table, swap, window
        self.waiting = waiting or Waiting()
        self.running: list[Sequence] = []  # in order of admission; the decode rows are those with a first token
        self._filling: list[Sequence] = []  # of these, those whose prompt is not complete
        self.counters = Counters()
        self.slots = slots
        self._beginning = beginning
        self._slots = list(range(slots))  # a heap: the lowest free slot first
        self._arrivals = 0
        self._latest: Sequence | None = None  # the last one added

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody runs."""
        return not self.running and not self.waiting

    @property
    def decoding(self) -> list[Sequence]:
        """The sequences with a token to continue, in order of admission."""
        return [seq for seq in self.running if seq.computed]

    # -- who runs ---------------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queue a sequence, which the whole cache can hold (PageTable.check)."""
        self._arrivals += 1
        seq.arrival = self._arrivals
        if self._beginning is not None:
            before = self._latest  # completions of one prompt come one after the other
            known = before is not None and before.request is seq.request
            salt = seq.request.schedule.cache_salt
            seq.keys = before.keys if known and before else prefix.page_keys(self._beginning, salt, seq.prompt)
        self._latest = seq
        self.waiting.add(seq)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to running, in order, while there are slots and pages; returns them. Nobody overtakes
        the first of the queue."""
        admitted: list[Sequence] = []
        while self._slots and (seq := self.waiting.first()) is not None and self._may_begin(seq):
            seq.slot = self.lend(0)
            seq.shares = self._shares(seq)
            self.running.append(seq)
            if not seq.filled:
                self._filling.append(seq)
            self.waiting.began(seq)
            if not seq.preempted:
                self.counters.prompt_tokens += len(seq.prompt)
            admitted.append(seq)
        return admitted

    def fits(self, tokens: int) -> bool:
        """Whether a slot and pages for so many tokens are free."""
        return bool(self._slots) and self.table.fits(tokens)

    def lend(self, tokens: int) -> int:
        """A slot with pages for so many tokens; the caller has asked `fits`, and calls `give_back`."""
        self.table.allocate(self._slots[0], tokens)
        return heapq.heappop(self._slots)

    def give_back(self, slot: int) -> None:
        """Free a slot and its pages."""
        self.table.release(slot)
        heapq.heappush(self._slots, slot)

    def release(self, seq: Sequence) -> None:
        """Free what a sequence holds, running, waiting or preempted."""
        if seq.slot < 0:
            self.waiting.remove(seq)
        else:
            self._stop(seq)
        self._free_places(seq)

    def clear(self) -> None:
        """Release everybody. Begins anew: whatever was broken off may have been half done."""
        for seq in self.running:
            seq.slot = -1
        self.running, self._filling, self._latest = [], [], None
        self._slots = list(range(self.slots))
        self.waiting.clear()
        self.table.clear()
        if self.swap is not None:
            self.swap.clear()

    def _stop(self, seq: Sequence) -> None:
        self.running.remove(seq)
        if seq in self._filling:
            self._filling.remove(seq)
        self.give_back(seq.slot)
        seq.slot = -1
        self.waiting.left(seq)

    def _may_begin(self, seq: Sequence) -> bool:
        """Whether there are pages for it, for what the prompts of others still lack, and one more for each sequence
        that can grow."""
        need = self._lacking(seq, 0) - self._shares(seq)
        if not self.running:
            return need <= self.table.free
        for other in self.running:
            owned = self.table.owned(other.slot)
            need += max(0, self._lacking(other, owned) - (0 if owned else other.shares))
        need += sum(_grows(other) for other in (*self.running, seq))
        return need + (HEADROOM if seq.preempted else 0) <= self.table.free

    def _lacking(self, seq: Sequence, owned: int) -> int:
        """Pages that a sequence of so many pages needs to come to its first token, or to its next one."""
        return max(0, pages_of(_begun(seq)) - owned)

    def _shares(self, seq: Sequence) -> int:
        """Pages of its prompt that others use, or will as they begin alike: it takes no free ones for them."""
        if seq.swapped is not None:
            return 0
        coming = {key for other in self._filling for key in other.keys}
        keys = seq.keys[: _most_shared(seq)]
        return next((i for i, key in enumerate(keys) if not (key in coming or self.table.pool.used(key))), len(keys))

    # -- preemption -------------------------------------------------------------------------------------------------

    def preempt(self) -> Copies | None:
        """Have the least urgent of the running sequences wait, of those the one that came last. No step is under way.

        What is to be copied to host memory before anything else is launched; None if it begins anew."""
        seq = max(self.running, key=lambda seq: (seq.request.schedule.priority, seq.arrival))
        self.counters.preempted += 1
        seq.preempted = True
        own = self.table.in_use(seq.slot)
        places = self.swap.take(len(own)) if self.swap is not None and seq.computed else None
        if places is None:
            self.counters.replayed += bool(seq.computed)
            seq.restart()
        else:
            self.counters.swapped += 1
            seq.swapped = [(i, place) for (i, _), place in zip(own, places, strict=True)]
        self._stop(seq)
        self.waiting.add(seq)
        return None if places is None else Copies([page for _, page in own], places)

    def resume(self, seq: Sequence) -> Copies | None:
        """Give an admitted sequence its pages again, if they were copied to host memory: what is to be copied back."""
        if seq.swapped is None:
            return None
        places = [place for _, place in seq.swapped]
        pages = self.table.restore(seq.slot, [i for i, _ in seq.swapped])
        self._free_places(seq)
        return Copies(pages, places)

    def _free_places(self, seq: Sequence) -> None:
        if seq.swapped is not None and self.swap is not None:
            self.swap.give_back([place for _, place in seq.swapped])
        seq.swapped = None

    # -- what is launched -------------------------------------------------------------------------------------------

    def prefill(self, rows: int) -> list[Chunk]:
        """The next prefill pass, of at most so many rows: it must be launched at once. [] if every running prompt is in
        the cache, or if there are no pages.

        Prompts that begin alike share pages, even those that this very pass writes: a layer writes the keys and values
        of all rows before any row reads them."""
        chunks: list[Chunk] = []
        for seq in self._filling:
            if rows <= 0 or len(chunks) == PROMPTS:
                break
            self._share(seq)
            self._let_go(seq, seq.prefilled + 1)
            last = min(seq.prefilled + rows, len(seq.prompt), self.table.reach(seq.slot))
            if last <= seq.prefilled:
                break
            self.table.grow(seq.slot, last)
            chunks.append(chunk := Chunk(seq, seq.prefilled, last))
            for i in range(chunk.first // PAGE, min(last // PAGE, len(seq.keys))):
                self.table.keep(seq.slot, i, seq.keys[i])
            seq.prefilled, rows = last, rows - chunk.rows
        for chunk in chunks:
            if chunk.ends:
                self._filling.remove(chunk.seq)
        return chunks

    def grow(self, rows: list[Sequence]) -> bool:
        """Give the rows of the next decode step pages for the token that it takes; False if there are too few."""
        for seq in rows:
            if pages_of(seq.length) > self.table.owned(seq.slot):
                self._let_go(seq, seq.length)
                if not self.table.grow(seq.slot, seq.length):
                    return False
        return True

    def spare(self, seq: Sequence) -> int:
        """Tokens for which a sequence has pages beyond its next decode step."""
        return self.table.owned(seq.slot) * PAGE - seq.length

    def _share(self, seq: Sequence) -> None:
        """Have a sequence use the pages that are there of the prompt that it still lacks."""
        while (i := seq.prefilled // PAGE) < min(_most_shared(seq), len(seq.keys)):
            if not self.table.share(seq.slot, seq.keys[i]):
                break
            seq.prefilled += PAGE
            if not seq.preempted:
                seq.cached += PAGE
                self.counters.cached_tokens += PAGE

    def _let_go(self, seq: Sequence, visible: int) -> None:
        """Give back the pages that no token sees any more, where every layer has a window.

        visible: tokens that the first one of the next pass sees, itself included."""
        if self.window and visible > self.window:
            self.table.let_go(seq.slot, visible - self.window)


def _begun(seq: Sequence) -> int:
    """Tokens in the cache once its next token is there: of a sequence that begins, or goes on."""
    return len(seq.prompt) + (seq.computed or 1)


def _grows(seq: Sequence) -> bool:
    """Whether it can come to need more pages than those of its next token."""
    return pages_of(seq.request.longest) > pages_of(_begun(seq))


def _most_shared(seq: Sequence) -> int:
    """Full pages of a prompt that somebody else's pass may have written: one token is left, which gives the logits."""
    return (len(seq.prompt) - 1) // PAGE
