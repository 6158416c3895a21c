"""From the caller's arguments to a checked Request, before anything runs.

Knows tokens and text, not the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import integer, refuse
from ..config import ModelConfig, SamplingParams
from ..errors import RequestError
from ..text import prompt_text
from ..text.output_text import Text
from ..text.stop_search import StopSearch
from ..text.tokenizer import Tokenizer
from .sequence import Request

Prompt = str | list[int]


@dataclass(frozen=True)
class Limits:
    """The limits of a request."""

    max_len: int  # tokens of prompt and completion
    cache: int  # tokens of the whole KV cache


def make(
    prompt: Prompt,
    params: SamplingParams,
    c: ModelConfig,
    t: Tokenizer,
    limits: Limits,
    seed: Callable[[], int],
    encode: Callable[..., list[int]] = prompt_text.encode,
) -> Request:
    """Check a prompt against the model. RequestError names the field.

    seed() gives a fresh seed where params have none. encode(text, t, max_len) gives the ids of a text."""
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
    stops = StopSearch(params.stop) if params.stop else None  # one for all completions
    return Request(
        ids,
        params,
        seed() if params.seed is None else params.seed,
        max_tokens,
        params.stop_ids(c),
        text,
        lambda: Text(t.incremental(), stops),
    )


def of_prompt(index: int, error: RequestError) -> RequestError:
    """The error with the prompt's index: "prompt: expected ..." becomes "prompts[2]: expected ..."."""
    message = str(error)
    rest = message.removeprefix("prompt")
    separator = "" if rest != message and rest[:1] in ("[", ":") else ": "
    return type(error)(f"prompts[{index}]{separator}{rest if not separator else message}")


def token_ids(prompt: Any, vocab: int, max_len: int | None = None) -> list[int]:
    """A prompt of ids as plain integers. RequestError if it is no list of ids, has max_len ids or more (checked first),
    or an id is out of range."""
    single = isinstance(prompt, np.ndarray) and prompt.ndim == 0
    if single or not isinstance(prompt, (list, tuple, np.ndarray)):
        raise RequestError(f"prompt: expected a string or a list of token ids, found {type(prompt).__name__}")
    if max_len is not None and len(prompt) >= max_len:
        raise RequestError(f"prompt: expected fewer than {max_len} tokens (max_len), found {len(prompt)}")
    values = prompt.tolist() if isinstance(prompt, np.ndarray) else prompt
    return [integer(f"prompt[{i}]", value, 0, vocab - 1) for i, value in enumerate(values)]


def prompts(given: Any) -> tuple[list[Prompt], bool]:
    """The prompts in the argument of generate, and whether it was a list of prompts. One string and one list of ids are
    one prompt."""
    if isinstance(given, str):
        return [given], False
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if not isinstance(given, (list, tuple)):
        raise RequestError(f"prompts: expected a string, token ids, or a list of them, found {type(given).__name__}")
    prompts = [isinstance(item, (str, list, tuple, np.ndarray)) for item in given]
    if given and not any(prompts):
        return [list(given)], False
    for i, item in enumerate(given):
        if not prompts[i]:
            refuse(f"prompts[{i}]", "a string or a list of token ids", item)
    return list(given), True


def texts(given: Any) -> list[str]:
    """The texts in the argument of embed: one string, or a list of strings that is not empty."""
    wanted = [given] if isinstance(given, str) else given
    if not isinstance(wanted, (list, tuple)) or not wanted:
        refuse("texts", "a string or a list of strings that is not empty", given)
    for i, text in enumerate(wanted):
        if not isinstance(text, str):
            refuse(f"texts[{i}]", "a string", text)
    return list(wanted)


def text_ids(index: int, text: str, t: Tokenizer, max_len: int) -> list[int]:
    """Token ids of texts[index], with the tokenizer's special tokens. RequestError if too many or none."""
    expected = f"texts[{index}]: expected 1 to {max_len} tokens (max_len)"
    prompt_text.expect_room(expected, text, t, max_len)
    try:
        ids = t.encode(text)
    except RequestError as e:
        raise RequestError(f"texts[{index}]: {str(e).removeprefix('prompt: ')}") from e
    if not 1 <= len(ids) <= max_len:
        raise RequestError(f"{expected}, found {len(ids)}")
    return ids
