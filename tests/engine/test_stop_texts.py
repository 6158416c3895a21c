"""Stop texts of whole requests: they may contain control tokens, and match across tokens and split characters."""

from __future__ import annotations

import pytest

from ostinato import LLM, RequestOutput, SamplingParams
from ostinato.run import requests

HOT = {"temperature": 2.0, "max_tokens": 60, "ignore_eos": True}


@pytest.fixture
def free(llm: LLM) -> tuple[int, RequestOutput, int]:
    """(a seed, its output without stop texts, index of the first control token in it)."""
    for seed in range(50):
        out = llm.generate("ab", SamplingParams(seed=seed, **HOT))[0]
        at = [i for i, token in enumerate(out.token_ids) if token in llm.tokenizer.control]
        if at and 5 < at[0] < 40:
            return seed, out, at[0]
    raise AssertionError("no seed gives a control token")


def spelled(llm: LLM, tokens: list[int]) -> str:
    decoder = llm.tokenizer.incremental(skip_special=False)
    return "".join(map(decoder.push, tokens)) + decoder.flush()


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_stop_text_round_a_control_token(llm: LLM, free: tuple[int, RequestOutput, int], before: int, after: int):
    seed, out, at = free
    text = spelled(llm, out.token_ids)
    begin = text.index(spelled(llm, out.token_ids[at : at + 1]))
    size = len(llm.tokenizer.control[out.token_ids[at]])
    stop = text[begin - before : begin + size + after]
    params = SamplingParams(seed=seed, stop=[stop, "never there"], **HOT)
    got = llm.generate("ab", params)[0]
    assert (got.text, got.finish_reason) == (text[: begin - before], "stop")
    assert got.token_ids == out.token_ids[: len(got.token_ids)] and len(got.token_ids) > at
    chunks = list(llm.stream("ab", params))
    assert "".join(c.text for c in chunks) == got.text and chunks[-1].output is not None
    late = SamplingParams(seed=seed, stop=stop, min_tokens=len(got.token_ids), **HOT)
    assert llm.generate("ab", late)[0].token_ids == out.token_ids  # complete within min_tokens: passed over
    inner = SamplingParams(seed=seed, stop=stop, min_tokens=at, **HOT)
    assert llm.generate("ab", inner)[0].outputs == got.outputs


def test_a_stop_text_that_ends_with_the_stop_token(llm: LLM, free: tuple[int, RequestOutput, int]) -> None:
    seed, out, at = free
    control = out.token_ids[at]
    text = spelled(llm, out.token_ids[:at])
    stop = text[-2:] + llm.tokenizer.control[control]
    got = llm.generate("ab", SamplingParams(seed=seed, stop=stop, stop_token_ids=[control], **HOT))[0]
    assert (got.text, got.finish_reason, len(got.token_ids)) == (text[:-2], "stop", at + 1)


def test_what_the_prompt_spells_does_not_count(llm: LLM, free: tuple[int, RequestOutput, int]) -> None:
    seed, out, _ = free
    stop = "b" + spelled(llm, out.token_ids[:1])
    assert stop not in spelled(llm, out.token_ids)
    assert llm.generate("ab", SamplingParams(seed=seed, stop=stop, **HOT))[0].token_ids == out.token_ids


def test_the_completions_of_a_request_share_one_search(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []

    class Counted(requests.StopSearch):
        def __init__(self, stops: tuple[str, ...]) -> None:
            built.append(stops)
            super().__init__(stops)

    monkeypatch.setattr(requests, "StopSearch", Counted)
    llm.generate("ab", SamplingParams(n=3, max_tokens=2, stop=["x", "y"]))
    assert built == [("x", "y")]
