"""The scheduler: which sequences wait, which run, and which rows the next pass has.

It owns the slots and, through PageTable, the pages of the KV cache. It knows tokens and counts only: no device arrays,
no text, no threads. It never decides that a sequence has ended (sequence.py does); `release` frees its slot and pages.

A sequence is admitted when there are pages for its prompt, and grows while it runs. If pages run out, one sequence is
preempted: the one of the lowest priority, and among these the latest. Its pages are swapped to host memory (swap.py)
and return, to any pages, before it resumes. Without room in host memory it is replayed: prompt by prefill, then its
known tokens by decode steps. Both keep every bit: a page is copied unchanged, and a replay repeats the same passes.
Computing generated tokens by prefill would not, since prefill sums in another order.
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

HEADROOM = 4  # hysteresis: pages beyond its own that must be free before a preempted sequence resumes


class Chunk(NamedTuple):
    """Prompt tokens first .. last - 1 of a sequence, computed by one prefill pass."""

    seq: Sequence
    first: int
    last: int

    @property
    def rows(self) -> int:
        """Rows of the chunk: whole tiles, so that no tile holds two sequences."""
        return -(-(self.last - self.first) // PAGE) * PAGE

    @property
    def ends(self) -> bool:
        """Whether it completes the prompt, so that a token is sampled."""
        return self.last == len(self.seq.prompt)


class Copies(NamedTuple):
    """Pages of the KV cache, and the places in host memory to copy them to or from."""

    pages: list[int]
    places: list[int]


@dataclass
class Counters:
    """Counts since the engine was made."""

    prompt_tokens: int = 0  # of admitted sequences; a resumed one counts once
    cached_tokens: int = 0  # of these, tokens found in the prefix cache
    preempted: int = 0  # preemptions
    swapped: int = 0  # of these, those swapped to host memory
    replayed: int = 0  # of these, those that are replayed


class Scheduler:
    """Up to `slots` sequences run. swap: host memory for preempted ones. beginning: root of the prefix cache's keys
    (prefix.root); None: no prefix cache. window: the largest window of all layers; 0 if a layer has none."""

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
        self.running: list[Sequence] = []  # in order of admission
        self._filling: list[Sequence] = []  # of these, those whose prompt is not in the KV cache yet
        self.counters = Counters()
        self.slots = slots
        self._beginning = beginning
        self._slots = list(range(slots))  # a heap: the lowest free slot first
        self._arrivals = 0
        self._latest: Sequence | None = None  # the last one added

    @property
    def idle(self) -> bool:
        """Whether no sequence waits or runs."""
        return not self.running and not self.waiting

    @property
    def decoding(self) -> list[Sequence]:
        """The running sequences that have their first token: the rows of the next decode step."""
        return [seq for seq in self.running if seq.computed]

    # -- admission --------------------------------------------------------------------------------------------------

    def add(self, seq: Sequence) -> None:
        """Queue a sequence that fits into the whole KV cache (PageTable.check)."""
        self._arrivals += 1
        seq.arrival = self._arrivals
        if self._beginning is not None:
            before = self._latest  # the completions of a request are added in a row
            known = before is not None and before.request is seq.request
            salt = seq.request.schedule.cache_salt
            seq.keys = before.keys if known and before else prefix.page_keys(self._beginning, salt, seq.prompt)
        self._latest = seq
        self.waiting.add(seq)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to running while there are slots and pages; returns them. The first of the queue
        blocks those behind it."""
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
        """The watermark: whether there are pages for it, for the rest of the running sequences' prompts, and one more
        for each sequence that can grow."""
        need = self._lacking(seq, 0) - self._shares(seq)
        if not self.running:
            return need <= self.table.free
        for other in self.running:
            owned = self.table.owned(other.slot)
            need += max(0, self._lacking(other, owned) - (0 if owned else other.shares))
        need += sum(_grows(other) for other in (*self.running, seq))
        return need + (HEADROOM if seq.preempted else 0) <= self.table.free

    def _lacking(self, seq: Sequence, owned: int) -> int:
        """Pages that a sequence with `owned` pages still needs for its next token."""
        return max(0, pages_of(_begun(seq)) - owned)

    def _shares(self, seq: Sequence) -> int:
        """Pages of its prompt that it can share with running sequences, and so takes no free ones for."""
        if seq.swapped is not None:
            return 0
        coming = {key for other in self._filling for key in other.keys}
        keys = seq.keys[: _most_shared(seq)]
        return next((i for i, key in enumerate(keys) if not (key in coming or self.table.pool.used(key))), len(keys))

    # -- preemption -------------------------------------------------------------------------------------------------

    def preempt(self) -> Copies | None:
        """Preempt the running sequence of the lowest priority, and among these the latest. No pass is in flight.

        Returns the copies to launch before any other pass; None: the sequence will be replayed."""
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
        """Give an admitted sequence pages for what was swapped out. Returns the copies to launch; None: nothing was."""
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

    # -- the next pass ----------------------------------------------------------------------------------------------

    def prefill(self, rows: int) -> list[Chunk]:
        """Plan the next prefill pass, of at most so many rows; the caller launches it before any other. [] if every
        running prompt is in the KV cache, or no page is free.

        Prompts with a common prefix share pages, even pages that this pass writes: each layer writes the keys and
        values of all rows before any row reads them."""
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
        """Give each row of the next decode step a page for its token; False if there are too few."""
        for seq in rows:
            if pages_of(seq.length) > self.table.owned(seq.slot):
                self._let_go(seq, seq.length)
                if not self.table.grow(seq.slot, seq.length):
                    return False
        return True

    def spare(self, seq: Sequence) -> int:
        """Decode steps after the next one for which a sequence has pages."""
        return self.table.owned(seq.slot) * PAGE - seq.length

    def _share(self, seq: Sequence) -> None:
        """Share pages of the prefix cache, as far as the next tokens of the prompt are there."""
        while (i := seq.prefilled // PAGE) < min(_most_shared(seq), len(seq.keys)):
            if not self.table.share(seq.slot, seq.keys[i]):
                break
            seq.prefilled += PAGE
            if not seq.preempted:
                seq.cached += PAGE
                self.counters.cached_tokens += PAGE

    def _let_go(self, seq: Sequence, visible: int) -> None:
        """Free the pages behind the window, if every layer has one.

        visible: tokens up to the first one of the next pass, inclusive."""
        if self.window and visible > self.window:
            self.table.let_go(seq.slot, visible - self.window)


def _begun(seq: Sequence) -> int:
    """Tokens that a sequence has places for once it is admitted, or resumed: up to its next token."""
    return len(seq.prompt) + (seq.computed or 1)


def _grows(seq: Sequence) -> bool:
    """Whether it may need more pages than for its next token."""
    return pages_of(seq.request.longest) > pages_of(_begun(seq))


def _most_shared(seq: Sequence) -> int:
    """Pages of a prompt that it can share at most: at least one token must be computed, for its logits."""
    return (len(seq.prompt) - 1) // PAGE
