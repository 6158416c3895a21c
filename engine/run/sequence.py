"""One completion in the making: its tokens, its text, and the one place that decides when it has ended.

A sequence ends by a stop token, a stop text, its length, an abort, its deadline or an error. The scheduler and the
runner read and set where it stands on the device (slot, prefilled, computed, ahead, swapped); they never decide that it
has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..config import SamplingParams, Scheduling
from ..outputs import logprobs
from ..text.output_text import Text


@dataclass(frozen=True)
class Request:
    """A prompt and what is asked for, checked against the model: `Engine.add` takes it as it is."""

    ids: list[int]  # the prompt
    params: SamplingParams
    seed: int  # of the first completion; completion i has seed + i
    max_tokens: int  # resolved: never None
    stop_ids: tuple[int, ...] = ()  # the tokens that end a completion
    prompt: str | None = None  # None if it was given as ids
    text: Callable[[], Text] | None = None  # makes the text of one completion; None: tokens alone are wanted
    schedule: Scheduling = field(default_factory=Scheduling)

    @property
    def longest(self) -> int:
        """Tokens of a completion that may need a place in the KV cache: a step launched ahead may write the last."""
        return len(self.ids) + self.max_tokens


@dataclass(eq=False)
class Sequence:
    """One completion; equal to itself only."""

    request: Request
    index: int = 0  # which of the request's n completions
    slot: int = -1  # index into everything per sequence on the device; -1 while waiting and once it has ended
    arrival: int = 0  # number among all sequences of the engine
    keys: list[bytes] = field(default_factory=list)  # of the full pages of its prompt, for the prefix cache
    prefilled: int = 0  # prompt tokens whose keys and values are in the KV cache, or will be before any later pass
    cached: int = 0  # of these, tokens that were found in the prefix cache when it first began
    shares: int = 0  # pages of its prompt that it need not take from the free ones, as was expected when it began
    computed: int = (
        0  # generated tokens that the host has seen since it began: fewer than `tokens` while it is replayed
    )
    ahead: int = 0  # decode steps launched whose tokens were not looked at yet
    preempted: bool = False  # it had begun, and waits to go on
    swapped: list[tuple[int, int]] | None = None  # (page of the sequence, place in host memory), preempted to there
    tokens: list[int] = field(default_factory=list)  # generated
    logprobs: list[dict[int, float]] | None = None  # one dict a token, if the request wants them
    finish_reason: str | None = None  # "stop", "length", "abort", "timeout" or "error"; None while it runs
    error: BaseException | None = None  # why it ended, if by an error
    text: Text | None = None

    def __post_init__(self) -> None:
        self.prompt, self.params = self.request.ids, self.request.params
        self.max_tokens, self.stop_ids = self.request.max_tokens, frozenset(self.request.stop_ids)
        self.seed = (self.request.seed + self.index) % 2**64
        if self.request.text is not None:
            self.text = self.request.text()

    @property
    def length(self) -> int:
        """Tokens with a place in the KV cache once the decode step is launched that takes its newest token."""
        return len(self.prompt) + self.computed + self.ahead

    @property
    def filled(self) -> bool:
        """Whether its prompt is in the KV cache."""
        return self.prefilled == len(self.prompt)

    def restart(self) -> None:
        """Begin again with the prompt; the tokens that are known already will be generated once more."""
        self.prefilled = self.shares = self.computed = 0

    def accept(self, token: int, logits: np.ndarray | None = None) -> Event:
        """Add the next token. logits [V] float32: what it was chosen from, for logprobs."""
        tokens, text = self.tokens, self.text
        tokens.append(token)
        count = len(tokens)
        may_stop = count > self.params.min_tokens
        stopped = may_stop and token in self.stop_ids
        if text is not None:
            (text.end if stopped else text.push)(token, may_stop)
            stopped = stopped or text.stopped
        if stopped or count == self.max_tokens:
            self._finish("stop" if stopped else "length")
        new = "" if text is None else text.take()
        if logits is None:
            return Event(self, token, new, self.finish_reason)
        return Event(self, token, new, self.finish_reason, self._logprobs(token, logits), logits)

    def end(self, reason: str) -> Event:
        """End it without a token: "abort", "timeout" or "error"."""
        self._finish(reason)
        return Event(self, None, "" if self.text is None else self.text.take(), reason)

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        if self.text is not None:
            self.text.flush()
            if reason == "length" and self.text.stopped:  # an incomplete character at the end completed a stop text
                self.finish_reason = "stop"

    def _logprobs(self, token: int, logits: np.ndarray) -> dict[int, float]:
        """Those of the token, kept with those of the tokens before."""
        found = logprobs(logits, token, self.params.logprobs or 0)
        self.logprobs = self.logprobs or []
        self.logprobs.append(found)
        return found


class Event(NamedTuple):
    """What happened to a sequence in a step. Immutable; `seq` itself goes on changing."""

    seq: Sequence
    token: int | None  # None: it ended without one
    text: str  # what became certain since the event before; all of them joined are the text of the output
    finish_reason: str | None = None  # on the last event of a sequence
    logprobs: dict[int, float] | None = None  # of the token, if asked for
    logits: np.ndarray | None = None  # [V] float32, likewise
