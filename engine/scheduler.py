"""Sequences from waiting over running to finished, and which rows go into the next step.

Called by the generation loop in loop.py; owns the slots and, through PageTable, the pages. It knows tokens and
counts only: no arrays of the device, no text.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .cache import PageTable
from .config import SamplingParams
from .sizes import PAGE, PROMPTS


@dataclass(eq=False)
class Sequence:
    """One completion in the making; equal to itself only."""

    prompt: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int  # resolved: never None
    stop_ids: tuple[int, ...]
    slot: int = -1  # index into everything per sequence on the device; -1 while waiting and when finished
    prefilled: int = 0  # prompt tokens whose keys and values are in the cache
    tokens: list[int] = field(default_factory=list)  # generated
    ahead: int = 0  # decode steps launched whose tokens were not looked at yet
    finish_reason: str | None = None  # "stop" or "length"

    @property
    def reserve(self) -> int:
        """Tokens that need a place in the cache, the last one's included (a step launched ahead may write it)."""
        return len(self.prompt) + self.max_tokens


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
        self._slots = list(range(slots))

    def add(self, seq: Sequence) -> None:
        """Queue a sequence. CacheFull if it could never run."""
        self.table.check(seq.reserve)
        self.waiting.append(seq)

    def admit(self) -> list[Sequence]:
        """Move waiting sequences to running, in order, while there are slots and pages; returns them."""
        admitted = []
        while self.waiting and self._slots and self.table.fits(self.waiting[0].reserve):
            seq = self.waiting.popleft()
            seq.slot = self._slots.pop(0)
            self.table.admit(seq.slot, seq.reserve)
            self.running.append(seq)
            admitted.append(seq)
        return admitted

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
        """Whether another decode step can be launched before the tokens of the last one are known: nobody is certain to
        end with the step in flight. (Nobody can be admitted either before somebody ends.)"""
        return all(len(seq.tokens) + seq.ahead < seq.max_tokens for seq in self.running)

    def accept(self, seq: Sequence, token: int) -> None:
        """The next token of a running sequence; ends it at a stop token or at its length."""
        seq.tokens.append(token)
        if token in seq.stop_ids and len(seq.tokens) > seq.params.min_tokens:
            self.finish(seq, "stop")
        elif len(seq.tokens) == seq.max_tokens:
            self.finish(seq, "length")

    def finish(self, seq: Sequence, reason: str) -> None:
        """End a running sequence and free its slot and pages."""
        seq.finish_reason = reason
        self.running.remove(seq)
        self.table.release(seq.slot)
        self._slots.append(seq.slot)
        self._slots.sort()
        seq.slot = -1

    def clear(self) -> None:
        """Drop everybody: an error, Ctrl-C, a generator closed early."""
        self.waiting.clear()
        for seq in list(self.running):
            self.finish(seq, "aborted")
