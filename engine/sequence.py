"""One completion in the making: its tokens, its text, and the one place that decides when it has ended.

A sequence ends by a stop token, a stop text, its length, an abort or an error. The scheduler and the runner read and
set where it stands on the device (slot, prefilled, ahead); they never decide that it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .config import SamplingParams
from .outputs import Text, logprobs


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

    @property
    def reserve(self) -> int:
        """Tokens of a completion that need a place in the KV cache: a step launched ahead may write the last one's."""
        return len(self.ids) + self.max_tokens


@dataclass(eq=False)
class Sequence:
    """One completion; equal to itself only."""

    request: Request
    index: int = 0  # which of the request's n completions
    slot: int = -1  # index into everything per sequence on the device; -1 while waiting and once it has ended
    prefilled: int = 0  # prompt tokens whose keys and values are in the cache
    ahead: int = 0  # decode steps launched whose tokens were not looked at yet
    tokens: list[int] = field(default_factory=list)  # generated
    logprobs: list[dict[int, float]] | None = None  # one dict a token, if the request wants them
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"; None while it runs
    error: BaseException | None = None  # why it ended, if by an error
    text: Text | None = None

    def __post_init__(self) -> None:
        self.prompt, self.params = self.request.ids, self.request.params
        self.max_tokens, self.stop_ids = self.request.max_tokens, frozenset(self.request.stop_ids)
        self.seed = (self.request.seed + self.index) % 2**64
        self._given = 0  # characters of the text that events have carried
        if self.request.text is not None:
            self.text = self.request.text()

    def accept(self, token: int, logits: np.ndarray | None = None) -> Event:
        """Add the next token. logits [V] float32: what it was chosen from, for logprobs."""
        self.tokens.append(token)
        count, text, stopped = len(self.tokens), self.text, False
        if count > self.params.min_tokens and token in self.stop_ids:
            stopped = True  # the text of a stop token is not part of the output
        elif text is not None:
            text.push(token, search=count > self.params.min_tokens)
            stopped = text.stopped
        if stopped or count == self.max_tokens:
            self.finish_reason = "stop" if stopped else "length"
        text_delta = self._delta()  # first: it may turn "length" into "stop"
        return Event(self, token, text_delta, self.finish_reason, self._logprobs(token, logits), logits)

    def end(self, reason: str) -> Event:
        """End it without a token: "abort" or "error"."""
        self.finish_reason = reason
        return Event(self, None, self._delta(), reason)

    def _logprobs(self, token: int, logits: np.ndarray | None) -> dict[int, float] | None:
        """Those of the token, kept with those of the tokens before; None without logits."""
        if logits is None:
            return None
        found = logprobs(logits, token, self.params.logprobs or 0)
        self.logprobs = self.logprobs or []
        self.logprobs.append(found)
        return found

    def _delta(self) -> str:
        """The text that became certain since the last event."""
        text = self.text
        if text is None:
            return ""
        if self.finish_reason is not None:
            text.flush()
            if text.stopped and self.finish_reason == "length":
                self.finish_reason = "stop"  # the last, incomplete character completed a stop text
        new = text.full[self._given : text.settled]
        self._given = text.settled
        return new


class Event(NamedTuple):
    """What happened to a sequence in a step. Immutable; `seq` itself goes on changing."""

    seq: Sequence
    token: int | None  # None: it ended without one
    text: str  # what became certain since the event before; all of them joined are the text of the output
    finish_reason: str | None = None  # on the last event of a sequence
    logprobs: dict[int, float] | None = None  # of the token, if asked for
    logits: np.ndarray | None = None  # [V] float32, likewise
