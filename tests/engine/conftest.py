"""One small LLM, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ostinato import LLM, SamplingParams


@pytest.fixture(scope="session")
def shared() -> Iterator[LLM]:
    """The fixture checkpoint "llama" on NumPy, with up to three sequences in a batch."""
    with LLM(Path(__file__).resolve().parents[1] / "fixtures/llama", backend="numpy", max_batch=3, quiet=True) as llm:
        yield llm


@pytest.fixture
def llm(shared: LLM) -> Iterator[LLM]:
    """The shared LLM. After each test all pages must be free, and it must still generate."""
    yield shared
    assert shared.runner.table.free == shared.runner.table.pages - 1
    assert shared.generate("x", SamplingParams(max_tokens=5, ignore_eos=True))[0].completion_tokens == 5
