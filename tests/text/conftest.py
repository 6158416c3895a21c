"""Fixtures for tests of tokenizers and templates."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from vocabularies import KINDS, byte_level

from ostinato.text.tokenizer import Tokenizer


@pytest.fixture(params=KINDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    """One tokenizer of each kind, from the tokenizers package."""
    return KINDS[request.param]()


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer with control tokens."""
    return Tokenizer(byte_level(), "tiny", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
