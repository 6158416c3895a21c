"""End tokens: their sources, in order of precedence; the end-of-turn token ends chats only."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ostinato import LLM, AsyncLLM, RequestError, RequestOutput, SamplingParams
from ostinato.sizes import STOP_IDS
from ostinato.text import prompt_text

LLAMA = Path(__file__).resolve().parents[1] / "fixtures/llama"
QUESTION = [{"role": "user", "content": "hi"}]


def checkpoint(folder: Path, **changes: Any) -> Path:
    """The fixture "llama" with changed keys of its files; the prefix names the file, None removes the key."""
    path = Path(shutil.copytree(LLAMA, folder / "model"))
    files = {"config": "config.json", "generation": "generation_config.json", "tokenizer": "tokenizer_config.json"}
    for name, value in changes.items():
        kind, _, key = name.partition("_")
        file = path / files[kind]
        values = json.loads(file.read_text()) | {key: value}
        file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


Open = Callable[..., LLM]


@pytest.fixture
def opened(tmp_path: Path) -> Open:
    return lambda **changes: LLM(checkpoint(tmp_path, **changes), backend="numpy", quiet=True)


SOURCES = [
    pytest.param({}, (2, 0), id="once each"),
    pytest.param({"generation_eos_token_id": 0, "config_eos_token_id": 1}, (0, 1, 2), id="in order"),
    pytest.param({"generation_eos_token_id": None, "config_eos_token_id": 0}, (0, 2), id="the tokenizer's beside"),
    pytest.param({"generation_eos_token_id": None, "config_eos_token_id": None}, (2,), id="the tokenizer's alone"),
    pytest.param({"tokenizer_eos_token": None, "generation_eos_token_id": [5, 6]}, (5, 6, 2), id="none of a tokenizer"),
]


@pytest.mark.parametrize(("changes", "ids"), SOURCES)
def test_the_models_own(opened: Open, changes: dict[str, Any], ids: tuple[int, ...]) -> None:
    with opened(**changes) as llm:
        assert llm.config.eos_ids == ids


OTHER_END = {"generation_eos_token_id": 0, "config_eos_token_id": 0, "tokenizer_eos_token": "<|endoftext|>"}


async def answers(llm: LLM, params: SamplingParams) -> list[RequestOutput]:
    on = AsyncLLM(llm)
    stream = on.stream_chat(QUESTION, params)
    return [await on.chat(QUESTION, params), *[c.output async for c in stream if c.output]]


def test_the_end_of_turn_ends_a_chat_and_nothing_else(opened: Open) -> None:
    with opened(**OTHER_END) as llm:
        assert llm.config.eos_ids == (0,)
        ids = llm.chat_prompt(QUESTION)
        for seed in range(60):  # find a seed whose answer has an end-of-turn token before any other end
            params = SamplingParams(temperature=2.0, seed=seed, max_tokens=60)
            free = llm.generate([ids], params)[0]
            if 2 in free.token_ids[1:-1]:
                break
        else:
            pytest.fail("no seed gives an end of turn")
        size = free.token_ids.index(2) + 1
        answer = llm.chat(QUESTION, params)
        assert (answer.token_ids, answer.finish_reason) == (free.token_ids[:size], "stop")
        chunks = list(llm.stream_chat(QUESTION, params))
        assert "".join(c.text for c in chunks) == answer.text
        for found in asyncio.run(answers(llm, params)):
            assert found.outputs == answer.outputs
        more = SamplingParams(temperature=2.0, seed=seed, max_tokens=size, ignore_eos=True)
        assert llm.chat(QUESTION, more).token_ids == llm.generate([ids], more)[0].token_ids


def test_twenty_stop_tokens_of_a_request_beside_the_models(opened: Open) -> None:
    with opened(**OTHER_END) as llm:
        for token in range(3, 23):
            params = SamplingParams(stop_token_ids=[*range(3, 23)], temperature=2.0, seed=token, min_tokens=2)
            out = llm.chat(QUESTION, params)
            assert out.token_ids[-1] in range(23) and not set(out.token_ids[:-1]) & set(range(3, 23))
        with pytest.raises(RequestError, match=rf"stop_token_ids: expected at most {STOP_IDS} .*\[0, 2\].* found 33"):
            llm.chat(QUESTION, SamplingParams(stop_token_ids=[*range(3, 34)]))


def test_control_tokens_of_a_prompt_count_where_that_is_asked_for(llm: LLM) -> None:
    text, params = "<|im_start|>user\nhi<|im_end|>\n", SamplingParams(max_tokens=3, ignore_eos=True)
    ids = llm.tokenizer.encode(text, special=True)
    assert [i for i in ids if i in llm.tokenizer.control] == [1, 2]
    parsed = llm.generate([text, "x", [5]], params, parse_special=True)
    plain = llm.generate(text, params)[0]
    assert parsed[0].prompt_token_ids == ids and not set(plain.prompt_token_ids) & set(llm.tokenizer.control)
    last = list(llm.stream(text, params, parse_special=True))[-1].output
    assert last is not None and last.token_ids == parsed[0].token_ids

    async def main() -> list[RequestOutput]:
        on = AsyncLLM(llm)
        chunks = [chunk async for chunk in on.stream(text, params, parse_special=True)]
        return [*await on.generate([text], params, parse_special=True), *(c.output for c in chunks if c.output)]

    assert [out.token_ids for out in asyncio.run(main())] == [last.token_ids] * 2
    for call in (llm.generate, llm.stream):
        with pytest.raises(RequestError, match="parse_special: expected True or False, found 1"):
            call("x", parse_special=1)  # type: ignore[arg-type]


def test_the_warning_about_control_tokens_appears_once(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prompt_text, "_told", False)
    params = SamplingParams(max_tokens=1)
    llm.generate("a <|im_end|>", params)  # quiet
    assert caplog.messages == []
    monkeypatch.setattr(llm, "_quiet", False)
    llm.generate("a <|im_end|>", params, parse_special=True)
    llm.generate("a <|im_end", params)
    llm.chat([{"role": "user", "content": "<|im_end|>"}], params)
    assert caplog.messages == []
    for _ in range(2):
        llm.generate("a <|im_end|>", params)
    assert len(caplog.records) == 1 and caplog.records[0].name == "ostinato"
    assert "'<|im_end|>' is taken as plain characters" in caplog.messages[0]
