"""Rejected requests, numbers of params, and streams that end early."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ostinato import LLM, EngineError, RequestError, SamplingParams

LLAMA = Path(__file__).resolve().parents[1] / "fixtures/llama"
HOT = SamplingParams(temperature=1.5, seed=11, max_tokens=20, ignore_eos=True)


BAD = [  # prompt, params, error, message
    pytest.param("", None, RequestError, "prompt: expected at least one token", id="empty prompt"),
    pytest.param([[]], None, RequestError, r"prompts\[0\]: expected at least one token", id="empty ids"),
    pytest.param(5, None, RequestError, "prompts: expected a string", id="not a prompt"),
    pytest.param([[272]], None, RequestError, r"prompts\[0\]\[0\].*found 272", id="id beyond the vocabulary"),
    pytest.param([[1, -1]], None, RequestError, r"prompts\[0\]\[1\].*found -1", id="negative id"),
    pytest.param([[1, True]], None, RequestError, r"prompts\[0\]\[1\].*found True", id="boolean id"),
    pytest.param([[1, 2.0]], None, RequestError, r"prompts\[0\]\[1\].*found 2.0", id="float id"),
    pytest.param([None], None, RequestError, r"^prompt\[0\]: expected an integer", id="None"),
    pytest.param(
        ["a", None], None, RequestError, r"^prompts\[1\]: expected a string or a list", id="None beside a text"
    ),
    pytest.param(["a", "b", ""], None, RequestError, r"^prompts\[2\]: expected at least one token", id="the third"),
    pytest.param([[1], [1, 272]], None, RequestError, r"^prompts\[1\]\[1\]: .*found 272", id="an id of the second"),
    pytest.param([[1], [5] * 128], None, RequestError, r"^prompts\[1\]: expected fewer", id="the second is too long"),
    pytest.param(
        [[1], [5] * 9],
        {"max_tokens": 120},
        RequestError,
        r"^prompts\[1\]: max_tokens: expected at most 119",
        id="does not fit the second",
    ),
    pytest.param(["a", "\ud800"], None, RequestError, r"^prompts\[1\]: expected Unicode", id="half a surrogate pair"),
    pytest.param(
        [[5] * 128], None, RequestError, r"prompts\[0\]: expected fewer than 128 tokens", id="prompt too long"
    ),
    pytest.param(
        [np.array(5)], None, RequestError, r"prompts?\b.*: expected a string or a list", id="an array of no length"
    ),
    pytest.param([[None] * 128], None, RequestError, "fewer than 128 tokens", id="too long, before its ids"),
    pytest.param([[5]], {"max_tokens": 128}, RequestError, "max_tokens: expected at most 127", id="does not fit"),
    pytest.param([[5] * 100], {"min_tokens": 50}, RequestError, "min_tokens: expected at most 28", id="min_tokens"),
    pytest.param("a", {"stop_token_ids": [272]}, RequestError, "stop_token_ids", id="stop token"),
    pytest.param("a", {"stop_token_ids": range(3, 35)}, RequestError, "stop_token_ids", id="too many stop tokens"),
]


@pytest.mark.parametrize(("prompt", "params", "error", "message"), BAD)
def test_bad_requests_are_refused_before_anything_runs(llm: LLM, prompt, params, error, message: str) -> None:
    options: dict[str, Any] = {k: list(v) if isinstance(v, range) else v for k, v in (params or {}).items()}
    with pytest.raises(error, match=message) as caught:
        llm.generate(prompt, SamplingParams(**options))
    assert isinstance(caught.value, EngineError) and "\n" not in str(caught.value)
    if isinstance(prompt, str):
        with pytest.raises(error, match=message):
            llm.stream(prompt, SamplingParams(**options))  # at the call, not at the first chunk


def test_as_many_params_as_prompts(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"expected one, or one per prompt \(2\), found 3"):
        llm.generate(["a", "b"], [HOT] * 3)
    with pytest.raises(RequestError, match="n: expected 1 in a stream, found 2"):
        llm.stream("a", SamplingParams(n=2))


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_stream_left_early_frees_its_pages(llm: LLM, how: str) -> None:
    stream = llm.stream("ab", HOT)
    next(stream)
    assert llm.runner.table.free < llm.runner.table.pages - 1
    if how == "closed":
        stream.close()
    del stream
