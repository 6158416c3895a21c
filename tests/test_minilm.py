"""The real encoder, downloaded once: vectors and similarities against transformers, alone and in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import ostinato

MODEL = "minilm-l6"
EXPECTED = np.load(Path(__file__).parent / "fixtures" / "minilm.npz")
TEXTS = EXPECTED["texts"].tolist()
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2, "float16": 4e-3}  # of similarities


@pytest.fixture(scope="module")
def llm() -> Iterator[ostinato.LLM]:
    with ostinato.LLM(MODEL, backend="numpy", quiet=True) as llm:
        yield llm


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_tokens_are_neither_cut_nor_padded(llm: ostinato.LLM) -> None:
    ids = [llm.tokenizer.encode(text) for text in TEXTS]
    assert [len(i) for i in ids] == EXPECTED["tokens"].tolist()
    assert {(i[0], i[-1]) for i in ids} == {(101, 102)}
    assert llm.tokenizer.decode(llm.tokenizer.encode("Fine, unbelievably fine!")) == "fine, unbelievably fine!"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_against_transformers(llm: ostinato.LLM, pooling: str) -> None:
    expected = EXPECTED[pooling]
    np.testing.assert_allclose(llm.embed(TEXTS, pooling=pooling, normalize=False), expected, atol=1e-4)
    found = llm.embed(TEXTS, pooling=pooling)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found @ found.T, unit(expected) @ unit(expected).T, atol=TOLERANCE["float32"])


def test_what_means_the_same_is_near(llm: ostinato.LLM) -> None:
    cat, kitten, rate, money, *_ = llm.embed(TEXTS)
    assert cat @ kitten > 0.6 > 0.2 > max(cat @ rate, cat @ money, kitten @ rate) and rate @ money > 0.25


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_weights_are_sensible(dtype: str) -> None:
    with ostinato.LLM(MODEL, backend="numpy", dtype=dtype, quiet=True) as llm:
        found = llm.embed(TEXTS)
    expected = unit(EXPECTED["mean"])
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=TOLERANCE[dtype])


def test_the_same_bits_alone_and_in_every_batch(llm: ostinato.LLM) -> None:
    together = llm.embed(TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(llm.embed(text), together[i : i + 1])
    np.testing.assert_array_equal(llm.embed(TEXTS[::-1] * 6), np.tile(together[::-1], (6, 1)))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_on_a_gpu(dtype: str) -> None:
    expected = unit(EXPECTED["mean"])
    try:
        llm = ostinato.LLM(MODEL, backend="cuda", dtype=dtype, quiet=True)
    except ostinato.DeviceError as e:
        pytest.skip(str(e))
    with llm:
        together = llm.embed(TEXTS)
        np.testing.assert_allclose(together @ together.T, expected @ expected.T, atol=TOLERANCE[dtype])
        for i, text in enumerate(TEXTS):
            np.testing.assert_array_equal(llm.embed(text), together[i : i + 1])
