"""The real model, downloaded once: token ids from the command line, and logits against transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ostinato
from ostinato.cli import main as cli
from ostinato.weights.checkpoint import open_checkpoint
from ostinato.weights.fetch import resolve

MODEL = "smollm2-135m"
EXPECTED = np.load(Path(__file__).parent / "fixtures" / "smollm2.npz")
# Greedy continuation of "The capital of France is", computed with transformers in float32.
CONTINUATION = [
    7042,
    30,
    198,
    198,
    504,
    2988,
    314,
    42,
    216,
    34,
    32,
    33,
    40,
    29,
    32,
    33,
    29,
    34,
    34,
    216,
    33,
    34,
    42,
    33,
]
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def llm() -> Iterator[ostinato.LLM]:
    with ostinato.LLM(MODEL, backend="numpy", max_batch=1, max_len=512, quiet=True) as llm:
        yield llm


@pytest.mark.timeout(600)
def test_the_command_line_gives_exactly_these_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--max-tokens 24 --temperature 0 --backend numpy --json"
    assert cli.main(["generate", MODEL, "The capital of France is", *options.split()]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["token_ids"] == CONTINUATION
    assert found["text"].startswith(" Paris.")
    assert (found["finish_reason"], found["prompt_tokens"], found["completion_tokens"]) == ("length", 5, 24)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("decoded", [0, 4], ids=["prefill", "decode"])
@pytest.mark.parametrize("i", [0, 1, 2], ids=["sentence", "numbers", "code"])
def test_logits_against_transformers(llm: ostinato.LLM, i: int, decoded: int) -> None:
    ids = EXPECTED[f"prompt_{i}"]
    logits = llm.logits(ids.tolist(), decode_from=len(ids) - decoded if decoded else None)
    assert np.abs(logits[:, EXPECTED["columns"]] - EXPECTED[f"some_{i}"]).max() < TOLERANCE
    if i == 0:
        assert np.abs(logits[-1] - EXPECTED["last_0"]).max() < TOLERANCE


def test_a_chat(llm: ostinato.LLM) -> None:
    question = "What is the capital of France? Answer in one short sentence."
    out = llm.chat([{"role": "user", "content": question}], ostinato.SamplingParams(max_tokens=20))
    assert (out.text, out.finish_reason) == ("The capital of France is Paris.", "stop")


def test_a_stop_text_that_is_a_control_token(llm: ostinato.LLM) -> None:
    question = [{"role": "user", "content": "What is 2+2? Answer with one word."}]
    params = ostinato.SamplingParams(max_tokens=40, ignore_eos=True, stop="<|im_end|>")
    out = llm.chat(question, params)
    assert (out.text, out.finish_reason, out.token_ids[-1]) == ('The answer is "two".', "stop", 2)
    assert "".join(chunk.text for chunk in llm.stream_chat(question, params)) == out.text


def test_a_chat_ends_at_the_end_of_turn_when_the_file_names_another_eos(
    llm: ostinato.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "config", replace(llm.config, eos_ids=(0,)))
    out = llm.chat([{"role": "user", "content": "What is 2+2? Answer with one word."}])
    assert (out.text, out.finish_reason) == ('The answer is "two".', "stop")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc")
def test_generate_takes_little_more_memory_than_the_weights() -> None:
    """At most 1.15 times the float32 weights plus the file. Measured as the peak of a process of its own."""
    code = (
        "import re; from pathlib import Path; from ostinato.cli.main import main; assert 0 == "
        f"main(['generate', '{MODEL}', 'Hello', '--max-tokens', '4', '--backend', 'numpy']); "
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak = 1024 * int(done.stdout.split()[-1])
    with open_checkpoint(resolve(MODEL, progress=False)) as ck:
        sizes = {name: (4 * int(np.prod(ck.shape(name))), sum(s.nbytes for s in ck.spans(name))) for name in ck.names()}
    weights, file = (sum(column) for column in zip(*sizes.values(), strict=True))
    assert peak <= 1.15 * weights + file
