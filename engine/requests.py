"""A request from the caller's arguments to its RequestOutput.

Knows tokens and text, not the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import prompt_text
from .checks import integer, refuse
from .config import ModelConfig, SamplingParams
from .errors import RequestError
from .loop import Event
from .outputs import CompletionOutput, RequestOutput, Text, logprobs
from .scheduler import Sequence
from .stop_search import StopSearch
from .tokenizer import Tokenizer

Prompt = str | list[int]


@dataclass(eq=False)
class Completion:
    """One completion in the making, and its text so far."""

    seq: Sequence
    text: Text
    logprobs: list[dict[int, float]] | None = None

    def take(self, event: Event) -> None:
        """Add a token of this sequence. Sets text.stopped if a stop text ends it."""
        seq = self.seq
        stop_token = seq.finish_reason == "stop" and event.token in seq.stop_ids
        add = self.text.end if stop_token else self.text.push  # the text of a stop token is not part of the output
        add(event.token, search=len(seq.tokens) > seq.params.min_tokens)
        if event.logits is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs.append(logprobs(event.logits, event.token, seq.params.logprobs or 0))
        if seq.finish_reason is not None:
            self.text.flush()

    def output(self, index: int) -> CompletionOutput:
        """The finished completion."""
        reason = "stop" if self.text.stopped else self.seq.finish_reason or "length"
        return CompletionOutput(index, self.text.full, list(self.seq.tokens), reason, self.logprobs)


@dataclass(eq=False)
class Request:
    """A prompt with its n completions."""

    prompt: str | None
    ids: list[int]
    completions: list[Completion]
    first: float | None = field(default=None)  # time of the first token, by the clock the caller uses
    last: float = 0.0  # time of the latest token

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return all(c.seq.finish_reason is not None for c in self.completions)

    def output(self, began: float) -> RequestOutput:
        """The finished request; `began` is when the caller asked."""
        outputs = [c.output(i) for i, c in enumerate(self.completions)]
        tokens = sum(len(o.token_ids) for o in outputs)
        first = began if self.first is None else self.first
        later = tokens - len(outputs)  # the tokens that came from decode steps
        rate = later / (self.last - first) if later > 0 and self.last > first else None
        return RequestOutput(self.prompt, self.ids, outputs, len(self.ids), tokens, first - began, rate)


@dataclass(frozen=True)
class Limits:
    """What a request must keep within."""

    max_len: int  # tokens of prompt and completion
    cache: int  # tokens the whole cache holds


def make(
    prompt: Prompt,
    params: SamplingParams,
    c: ModelConfig,
    t: Tokenizer,
    limits: Limits,
    seed: Callable[[], int],
    encode: Callable[..., list[int]] = prompt_text.encode,
) -> Request:
    """Check a prompt against the model and prepare its sequences. RequestError names the field.

    seed() gives a fresh seed where params have none; output i has seed + i. encode(text, t, max_len) gives the ids of
    a text."""
    text = prompt if isinstance(prompt, str) else None
    ids = encode(prompt, t, limits.max_len) if isinstance(prompt, str) else token_ids(prompt, c.vocab, limits.max_len)
    if not ids:
        raise RequestError("prompt: expected at least one token, found none")
    room = limits.max_len - len(ids)
    if room < 1:
        raise RequestError(f"prompt: expected fewer than {limits.max_len} tokens (max_len), found {len(ids)}")
    if params.max_tokens is not None and params.max_tokens > room:
        raise RequestError(f"max_tokens: expected at most {room}, which is max_len {limits.max_len} less the prompt's "
                           f"{len(ids)} tokens, found {params.max_tokens}")  # fmt: skip
    max_tokens = params.max_tokens or max(1, min(room, limits.cache - len(ids)))
    if params.min_tokens > max_tokens:
        raise RequestError(f"min_tokens: expected at most {max_tokens}, which is what fits, found {params.min_tokens}")
    stop_ids = params.stop_ids(c)
    first = seed() if params.seed is None else params.seed
    sequences = [Sequence(ids, params, (first + i) % 2**64, max_tokens, stop_ids) for i in range(params.n)]
    stops = StopSearch(params.stop) if params.stop else None
    return Request(text, ids, [Completion(seq, Text(t.incremental(), stops)) for seq in sequences])


def token_ids(prompt: Any, vocab: int, max_len: int | None = None) -> list[int]:
    """A prompt given as ids, as plain integers. RequestError if it is anything else, has max_len ids or more (which is
    looked at first), or an id is out of range."""
    single = isinstance(prompt, np.ndarray) and prompt.ndim == 0
    if single or not isinstance(prompt, (list, tuple, np.ndarray)):
        raise RequestError(f"prompt: expected a string or a list of token ids, found {type(prompt).__name__}")
    if max_len is not None and len(prompt) >= max_len:
        raise RequestError(f"prompt: expected fewer than {max_len} tokens (max_len), found {len(prompt)}")
    values = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    return [integer(f"prompt[{i}]", value, 0, vocab - 1) for i, value in enumerate(values)]


def prompts(given: Any) -> list[Prompt]:
    """The prompts in what generate was given: one string, one list of ids, or a list of either."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if not isinstance(given, (list, tuple)):
        raise RequestError(f"prompts: expected a string, token ids, or a list of them, found {type(given).__name__}")
    if given and not any(isinstance(item, (str, list, tuple, np.ndarray)) for item in given):
        return [list(given)]
    return list(given)


def texts(given: Any) -> list[str]:
    """The texts in what embed was given: one string, or a list of strings that is not empty."""
    wanted = [given] if isinstance(given, str) else given
    if not isinstance(wanted, (list, tuple)) or not wanted:
        refuse("texts", "a string or a list of strings that is not empty", given)
    for i, text in enumerate(wanted):
        if not isinstance(text, str):
            refuse(f"texts[{i}]", "a string", text)
    return list(wanted)


def text_ids(index: int, text: str, t: Tokenizer, max_len: int) -> list[int]:
    """Token ids of texts[index], with what the tokenizer puts at its ends. RequestError if too many or none."""
    expected = f"texts[{index}]: expected 1 to {max_len} tokens (max_len)"
    prompt_text.expect_room(expected, text, t, max_len)
    try:
        ids = t.encode(text)
    except RequestError as e:
        raise RequestError(f"texts[{index}]: {str(e).removeprefix('prompt: ')}") from e
    if not 1 <= len(ids) <= max_len:
        raise RequestError(f"{expected}, found {len(ids)}")
    return ids
