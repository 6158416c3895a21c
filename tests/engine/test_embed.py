"""LLM.embed and `ostinato embed`: vectors of texts, and rejected calls of encoders and decoders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ostinato import LLM, RequestError, SamplingParams
from ostinato.cli import main as cli

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
BERT, LLAMA = str(FIXTURES / "bert"), str(FIXTURES / "llama")
TEXTS = ["the river runs", "A short pattern", "", "the river runs past the mill, and the miller counts " * 6]


@pytest.fixture(scope="module")
def encoder() -> Iterator[LLM]:
    with LLM(BERT, backend="numpy", quiet=True) as llm:
        yield llm


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_the_pooled_states_of_the_tokenizers_ids(encoder: LLM, pooling: str) -> None:
    ids = [encoder.tokenizer.encode(text) for text in TEXTS]
    assert {(i[0], i[-1]) for i in ids} == {(2, 3)}  # [CLS], [SEP], of the empty text too
    assert max(map(len, ids)) > 64  # tokenizer.json says 32: neither cut nor padded
    found = encoder.embed(TEXTS, pooling=pooling, normalize=False)
    assert (found.dtype, found.shape) == (np.float32, (4, 48))
    np.testing.assert_array_equal(found, encoder.encoder.embed(ids, cls=pooling == "cls"))
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(TEXTS, pooling=pooling), found / lengths, rtol=1e-6)


@pytest.mark.parametrize("graph", ["off", "layer", "step"])
def test_every_scope_gives_the_same_bits_alone_and_together(encoder: LLM, graph: str) -> None:
    with LLM(BERT, backend="numpy", graph=graph, quiet=True) as llm:
        assert (llm.captured.graphs > 0) == (graph != "off") and llm.max_len == 128
        found = llm.embed(TEXTS * 9)
        np.testing.assert_array_equal(found, np.tile(encoder.embed(TEXTS), (9, 1)))
        np.testing.assert_array_equal(llm.embed(TEXTS[1]), found[1:2])


Call = Callable[[LLM], object]
HELLO = [{"role": "user", "content": "hello"}]
GENERATES = r"model: expected a decoder, which generates text, found an encoder \(bert\)"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda m: m.generate("x"), GENERATES, id="generate"),
        pytest.param(lambda m: m.stream("x"), GENERATES, id="stream"),
        pytest.param(lambda m: m.chat(HELLO), GENERATES, id="chat"),
        pytest.param(lambda m: m.stream_chat(HELLO), GENERATES, id="stream_chat"),
        pytest.param(lambda m: m.logits([1]), GENERATES, id="logits"),
        pytest.param(lambda m: m.embed([]), r"texts: expected a string or a list .* not empty, found \[\]", id="none"),
        pytest.param(lambda m: m.embed(None), "texts: expected a string or a list", id="not-a-list"),
        pytest.param(lambda m: m.embed(["a", 7]), r"texts\[1\]: expected a string, found 7", id="a-number"),
        pytest.param(lambda m: m.embed(["a", [1, 2]]), r"texts\[1\]: expected a string, found \[1, 2\]", id="ids"),
        pytest.param(
            lambda m: m.embed(["a", "b " * 127]), r"texts\[1\]: expected 1 to 128 tokens .* found 129", id="too-long"
        ),
        pytest.param(lambda m: m.embed("\ud800"), r"texts\[0\]: expected Unicode text", id="half-a-character"),
        pytest.param(lambda m: m.embed("a", pooling="max"), "pooling: expected one of mean, cls", id="pooling"),
        pytest.param(lambda m: m.embed("a", normalize=1), "normalize: expected True or False", id="normalize"),  # pyright: ignore
    ],
)
def test_an_encoder_refuses(encoder: LLM, call: Call, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(encoder)


def test_a_text_may_fill_every_position(encoder: LLM) -> None:
    assert encoder.embed("b " * 126).shape == (1, 48)


def test_a_decoder_refuses_to_embed(shared: LLM) -> None:
    with pytest.raises(RequestError, match=r"found a decoder \(decoder\), which has no pooling of its own"):
        shared.embed("x")
    assert shared.generate("x", SamplingParams(max_tokens=1))


def test_a_closed_one_refuses() -> None:
    llm = LLM(BERT, backend="numpy", quiet=True)
    llm.close()
    with pytest.raises(RequestError, match="found it closed"):
        llm.embed("x")


def test_the_command_prints_cosines_or_json(capsys: pytest.CaptureFixture[str], encoder: LLM) -> None:
    options = ["--backend", "numpy"]
    assert cli.main(["embed", BERT, *TEXTS[:2], *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    cosine = float(encoder.embed(TEXTS[0])[0] @ encoder.embed(TEXTS[1])[0])
    assert [line.split()[:2] for line in lines] == [["1.000", f"{cosine:.3f}"], [f"{cosine:.3f}", "1.000"]]
    assert lines[0].endswith(TEXTS[0])
    assert cli.main(["embed", BERT, *TEXTS[:2], *options, "--json", "--no-normalize", "--pooling", "cls"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = encoder.embed(TEXTS[:2], pooling="cls", normalize=False)
    np.testing.assert_array_equal(np.array(found["embeddings"], np.float32), expected)
    assert (found["pooling"], found["backend"], found["graph"]) == ("cls", "numpy", "step")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["embed", LLAMA, "x"], "expected an encoder", id="decoder"),
        pytest.param(["embed", BERT, "x", "--pooling", "max"], "--pooling: invalid choice: 'max'", id="pooling"),
        pytest.param(["embed", BERT, "x", "--no-normalize"], "--no-normalize: expected --json", id="no-normalize"),
        pytest.param(["embed", BERT, "x", "--nvtx"], "nvtx: expected a backend on a GPU", id="nvtx"),
        pytest.param(["embed", BERT, "b " * 127], "texts[0]: expected 1 to 128 tokens", id="too-long"),
        pytest.param(["embed", BERT, "x", "--max-len", "129"], "max_len: expected at most 128", id="max-len"),
        pytest.param(["generate", BERT, "x"], "expected a decoder", id="generate"),
        pytest.param(["generate", BERT, "x", "--json"], "expected a decoder", id="generate-json"),
        pytest.param(["generate", BERT, "x", "--chat"], "expected a decoder", id="generate-chat"),
        pytest.param(["chat", BERT], "expected a decoder", id="chat"),
        pytest.param(["bench", "decode", BERT, "--prompt-len", "4", "--max-tokens", "4"], "a decoder", id="bench"),
    ],
)
def test_a_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    assert cli.main([*args, "--backend", "numpy"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err.splitlines()[-1] and "Traceback" not in err
