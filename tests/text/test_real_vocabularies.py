"""Vocabularies of real models, cut down to some texts: ids are those of the models' own tokenizers.

tests/fixtures/record_tokenizers.py wrote them, from tokenizer.json, SentencePiece's tokenizer.model or tiktoken.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ostinato.errors import RequestError
from ostinato.text.tokenizer import Tokenizer

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "tokenizers"
TEXTS = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if path.stem != "texts")
_MADE: dict[str, tuple[Tokenizer, dict[str, Any]]] = {}


def real(name: str) -> tuple[Tokenizer, dict[str, Any]]:
    """A tokenizer of a GGUF file's metadata, and what was recorded."""
    if name not in _MADE:
        found = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        checkpoint = SimpleNamespace(directory=None, metadata=found["metadata"], source=Path(f"{name}.gguf"))
        _MADE[name] = Tokenizer.from_checkpoint(checkpoint), found
    return _MADE[name]


@pytest.mark.parametrize("text", [pytest.param(text, id=f"{i}-{text!a:.12}") for i, text in enumerate(TEXTS)])
@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_the_models_own_tokenizer(name: str, text: str) -> None:
    t, found = real(name)
    if name == "mistral-v3" and text.startswith((" ", "▁")):
        pytest.skip("the models' tokenizer.json puts no space before a text that begins with one, SentencePiece does")
    try:
        ids = t.encode(text, bos=False)
    except RequestError as e:  # the model's own tokenizer has an unknown token there
        assert "cannot be encoded other than as control token" in str(e)
        assert set(found["ids"][TEXTS.index(text)]) & t.control.keys()
        return
    assert ids == found["ids"][TEXTS.index(text)]


@pytest.mark.parametrize("name", NAMES)
def test_texts_come_back(name: str) -> None:
    t, _ = real(name)
    changed = {"qwen3": "\u0301", "qwen35": "\u0301", "llama2": "▁", "mistral-v1": "▁", "mistral-v3": "▁"}.get(name)
    texts = [text for text in TEXTS if changed is None or changed not in text]  # composed; taken for a space
    texts = [text for text in texts if name != "mistral-v3" or text[:1] != " "]
    assert [t.decode(t.encode(text, bos=False)) for text in texts] == texts


CHATS = [(name, text) for name in NAMES for text in real(name)[1]["special"]]


@pytest.mark.parametrize(("name", "text"), CHATS)
def test_chats_have_the_ids_of_the_models_own_tokenizer(name: str, text: str) -> None:
    """In one go, and in parts between control tokens, as texts are encoded that spell control tokens."""
    t, found = real(name)
    assert t.encode(text, special=True, bos=False) == found["special"][text]
    assert t.encode_marked(text, lambda part: part) == found["special"][text]
