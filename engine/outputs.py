"""What a request gives back, and the text of a completion as its tokens arrive.

Used by requests.py and llm.py; pure Python and NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .detokenizer import Decoder


@dataclass
class CompletionOutput:
    """One completion of a prompt."""

    index: int  # 0 .. n - 1
    text: str  # without the stop text or the text of the stop token
    token_ids: list[int]  # everything generated, the stop token included
    finish_reason: str  # "stop" (a stop token or a stop text), "length" (max_tokens) or "abort" (LLM.abort)
    logprobs: (
        list[dict[int, float]] | None
    )  # a token: id to log probability, most probable first, the token's own included


@dataclass
class RequestOutput:
    """A prompt and its completions."""

    prompt: str | None  # None if it was given as ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_tokens: int
    completion_tokens: int  # of all outputs together
    ttft: float  # seconds from the call to the first token of the request
    decode_tok_s: float | None  # tokens a second after the first token; None if there was only one

    @property
    def text(self) -> str:
        """Text of the first completion."""
        return self.outputs[0].text

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the first completion."""
        return self.outputs[0].token_ids

    @property
    def finish_reason(self) -> str:
        """Why the first completion ended: "stop" or "length"."""
        return self.outputs[0].finish_reason


@dataclass
class StreamChunk:
    """What is new since the last chunk. All texts joined are the text of the output, all ids its token_ids."""

    text: str  # may be "": a character is incomplete, or what is there may be the beginning of a stop text
    token_ids: list[int]
    output: RequestOutput | None = None  # on the last chunk only


@dataclass
class Text:
    """The text of a growing completion, cut at the first stop text. `settled` characters of it are final."""

    decoder: Decoder
    stop: tuple[str, ...]
    full: str = ""
    settled: int = 0
    stopped: bool = field(default=False)  # a stop text was found; `full` ends before it

    def push(self, token: int, search: bool = True) -> None:
        """Add a token. search: whether a stop text that it completes ends the completion."""
        self._add(self.decoder.push(token), search)

    def flush(self) -> None:
        """No more tokens: settle everything."""
        if not self.stopped:
            self._add(self.decoder.flush(), True)
        self.settled = len(self.full)

    def _add(self, new: str, search: bool) -> None:
        before = len(self.full)
        self.full += new
        # a stop text counts when its end is new, so it begins at most its length before the new text's end
        starts = [self.full.find(stop, max(0, before - len(stop) + 1)) for stop in self.stop] if search and new else []
        found = [start for start in starts if start >= 0]
        if found:
            self.full, self.stopped = self.full[: min(found)], True
        self.settled = max(self.settled, len(self.full) - (0 if self.stopped else self._pending()))

    def _pending(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = max((len(stop) - 1 for stop in self.stop), default=0)
        for size in range(min(longest, len(self.full)), 0, -1):
            if any(stop.startswith(self.full[-size:]) for stop in self.stop):
                return size
        return 0


def logprobs(row: np.ndarray, token: int, top: int) -> dict[int, float]:
    """Natural log probabilities (temperature 1, no penalties) of the `top` most probable tokens, then of `token`.

    row [V] float32 logits; equal ones in the order of their ids."""
    values = row.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    edge = np.partition(values, len(values) - top)[len(values) - top] if 0 < top < len(values) else -np.inf
    best = np.flatnonzero(values >= edge) if top else np.empty(0, np.int64)
    best = best[np.argsort(-values[best], kind="stable")][:top]
    return {int(i): float(values[i]) for i in dict.fromkeys([*best.tolist(), token])}
