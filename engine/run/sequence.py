"""One completion while it is generated: its tokens, its text, and the only place that decides when it ends.

A sequence ends by a stop token, a stop text, its length, an abort, a timeout or an error. The scheduler and the batch
keep its state on the device here (slot, prefilled, computed, ahead, swapped); they never decide that it has ended.
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
    """A prompt and its parameters, checked against the model: the argument of `Engine.add`."""

    ids: list[int]  # the prompt
    params: SamplingParams
    seed: int  # of the first completion; completion i has seed + i
    max_tokens: int  # resolved: never None
    stop_ids: tuple[int, ...] = ()  # the tokens that end a completion
    prompt: str | None = None  # None if it was given as ids
    text: Callable[[], Text] | None = None  # makes the text of one completion; None: tokens only
    schedule: Scheduling = field(default_factory=Scheduling)

    @property
    def longest(self) -> int:
        """Tokens of a completion that may be in the KV cache: a step launched ahead may write the last one."""
        return len(self.ids) + self.max_tokens


@dataclass(eq=False)
class Sequence:
    """One completion; compared by identity."""

    request: Request
    index: int = 0  # which of the request's n completions
    slot: int = -1  # index into the per-sequence arrays of the device; -1 while it waits and once it has ended
    arrival: int = 0  # its number in the order of arrival
    keys: list[bytes] = field(default_factory=list)  # of its prompt's full pages, for the prefix cache
    prefilled: int = 0  # prompt tokens that the passes launched so far put into the KV cache
    cached: int = 0  # of these, tokens found in the prefix cache the first time
    shares: int = 0  # pages that it was expected to share with running sequences when it was admitted
    computed: int = 0  # tokens generated and read since it was admitted; fewer than len(tokens) during a replay
    ahead: int = 0  # decode steps in flight
    preempted: bool = False  # at least once
    swapped: list[tuple[int, int]] | None = None  # (index of its page, place in host memory) while swapped out
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
        """Tokens in the KV cache after the next decode step."""
        return len(self.prompt) + self.computed + self.ahead

    @property
    def filled(self) -> bool:
        """Whether its whole prompt is in the KV cache."""
        return self.prefilled == len(self.prompt)

    def restart(self) -> None:
        """Start again with the prompt; its known tokens will be generated again (a replay)."""
        self.prefilled = self.shares = self.computed = 0

    def accept(self, token: int, logits: np.ndarray | None = None) -> Event:
        """Add the next token. logits [V] float32: those it was sampled from, for logprobs."""
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
        """Compute the token's logprobs and keep them."""
        found = logprobs(logits, token, self.params.logprobs or 0)
        self.logprobs = self.logprobs or []
        self.logprobs.append(found)
        return found


class Event(NamedTuple):
    """A new token of a sequence, or its end. Immutable; `seq` itself goes on changing."""

    seq: Sequence
    token: int | None  # None: the sequence ended without one
    text: str  # new final text; all events joined give the text of the output
    finish_reason: str | None = None  # on the last event of a sequence
    logprobs: dict[int, float] | None = None  # of the token, if asked for
    logits: np.ndarray | None = None  # [V] float32, likewise
