"""The results of requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class CompletionOutput:
    """One completion of a prompt."""

    index: int  # 0 .. n - 1
    text: str  # without the stop text or the stop token's text
    token_ids: list[int]  # all generated tokens, including the stop token
    finish_reason: str  # "stop" (stop token or text), "length" (max_tokens), "abort" (LLM.abort) or "timeout"
    logprobs: list[dict[int, float]] | None  # per token: id -> natural log probability, best first; None: not asked for


@dataclass
class RequestOutput:
    """A prompt and its completions."""

    prompt: str | None  # None if it was given as ids
    prompt_token_ids: list[int]  # with the tokens that the tokenizer adds
    outputs: list[CompletionOutput]  # [n]
    prompt_tokens: int  # length of prompt_token_ids
    completion_tokens: int  # sum over all outputs
    ttft: float  # seconds from the call to the request's first token
    decode_tok_s: float | None  # tokens/s after the first token; None if there was only one
    cached_tokens: int = 0  # prompt tokens found in the prefix cache, by the first completion

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
        """Why the first completion ended: "stop", "length", "abort" or "timeout"."""
        return self.outputs[0].finish_reason


@dataclass
class StreamChunk:
    """The text and tokens since the last chunk. All texts joined are the output's text, all ids its token_ids."""

    text: str  # "" while a character is incomplete, or while the text may be the beginning of a stop text
    token_ids: list[int]  # tokens since the last chunk
    output: RequestOutput | None = None  # on the last chunk only


def logprobs(row: np.ndarray, token: int, top: int) -> dict[int, float]:
    """Natural log probabilities (temperature 1, no penalties) of the `top` most probable tokens, then of `token`.

    row: [V] float32 logits. Equal logits are ordered by id."""
    values = row.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    edge = np.partition(values, len(values) - top)[len(values) - top] if 0 < top < len(values) else -np.inf
    best = np.flatnonzero(values >= edge) if top else np.empty(0, np.int64)
    best = best[np.argsort(-values[best], kind="stable")][:top]
    return {int(i): float(values[i]) for i in dict.fromkeys([*best.tolist(), token])}
