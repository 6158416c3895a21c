"""What a request gives back, and the text of a completion as its tokens arrive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .detokenizer import Decoder
from .stop_search import StopSearch


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


class Text:
    """The text of a growing completion, cut at the first stop text.

    Stop texts are searched for in what the tokens spell; control tokens are then left out of the text."""

    def __init__(self, decoder: Decoder, stops: StopSearch | None = None) -> None:
        """stops: shared by the completions of a request; None = no stop texts."""
        self.stopped = False  # a stop text was found
        self._decoder, self._stops = decoder, stops
        self._state = ""  # what the tokens spell that may begin a stop text: held back
        self._held: list[tuple[str, bool]] = []  # the same in pieces, each with whether it is part of the text
        self._final: list[str] = []  # the text that is certain, in pieces
        self._taken = 0  # pieces of it that `take` has given out

    @property
    def full(self) -> str:
        """The text that is certain; all of it after `flush`."""
        return "".join(self._final)

    def take(self) -> str:
        """The text that has become certain since the last call."""
        pieces, self._taken = self._final[self._taken :], len(self._final)
        return "".join(pieces)

    def push(self, token: int, search: bool = True) -> None:
        """Add a token. search: whether a stop text that it completes ends the completion."""
        decoder = self._decoder
        if token in decoder.left_out:
            self._add(decoder.spelled(token), False, search)
        else:
            self._add(decoder.push(token), True, search)

    def end(self, token: int, search: bool = True) -> None:
        """Add a stop token: no part of the text, but a stop text may end with what it spells."""
        self._add(self._decoder.flush(), True, search)
        self._add(self._decoder.spelled(token), False, search)

    def flush(self) -> None:
        """No more tokens: what was held back is certain."""
        self._add(self._decoder.flush(), True, True)
        self._release(len(self._state))
        self._state = ""

    def _add(self, new: str, shown: bool, search: bool) -> None:
        """Add what a token spells; shown: whether it is part of the text."""
        if not new or self.stopped:
            return
        if self._stops is None or self._stops.idle(self._state, new):
            if shown:
                self._final.append(new)
            return
        length = len(self._state) + len(new)
        self._state, end, match = self._stops.advance(self._state, new, search)
        self._held.append((new, shown))
        if match:
            self._release(length - len(new) + end - match)
            self._held, self._state, self.stopped = [], "", True
        else:
            self._release(length - len(self._state))

    def _release(self, size: int) -> None:
        """Let the first `size` characters of what is held back go."""
        while size:
            piece, shown = self._held[0]
            if shown:
                self._final.append(piece[:size])
            if size < len(piece):
                self._held[0] = (piece[size:], shown)
            else:
                del self._held[0]
            size -= min(size, len(piece))


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
