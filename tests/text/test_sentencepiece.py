"""SentencePiece vocabularies of GGUF files: what the keys mean, and files that are wrong.

Ids of real vocabularies are in test_real_vocabularies.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vocabularies import sentencepiece_metadata

from ostinato.errors import RequestError, TokenizerError
from ostinato.text.tokenizer import Tokenizer


def made(architecture: str = "llama", **changes: Any) -> Tokenizer:
    values = {"general.architecture": architecture, **sentencepiece_metadata(**changes)}
    checkpoint = SimpleNamespace(directory=None, metadata=values, source=Path("tiny.gguf"))
    return Tokenizer.from_checkpoint(checkpoint)


def pieces(t: Tokenizer, text: str, **how: Any) -> list[str]:
    backend: Any = t._backend
    return [backend.id_to_token(i) for i in t.encode(text, **how)]


def tokens(*more: tuple[str, int, float]) -> dict[str, Any]:
    """The usual tokens and these: text, type, score."""
    usual = sentencepiece_metadata()
    texts, types, scores = (usual[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type", "scores"))
    return {
        "tokens": texts + [text for text, _, _ in more],
        "token_type": types + [kind for _, kind, _ in more],
        "scores": scores + [score for _, _, score in more],
    }


LETTERS = [(char, 1, -99.0) for char in "</s>"]


@pytest.mark.parametrize(
    ("changes", "text", "expected"),
    [
        pytest.param({}, "ab", ["<s>", "▁ab"], id="begin-and-space"),
        pytest.param({}, " ab", ["<s>", "▁▁", "ab"], id="a-space-more"),
        pytest.param({}, "", ["<s>"], id="nothing"),
        pytest.param({"add_space_prefix": False}, "ab", ["<s>", "ab"], id="no-space"),
        pytest.param({"add_bos_token": False}, "ab", ["▁ab"], id="no-begin"),
        pytest.param({"add_eos_token": True}, "ab", ["<s>", "▁ab", "</s>"], id="end"),
        pytest.param({}, "é", ["<s>", "▁", "<0xC3>", "<0xA9>"], id="bytes"),
        pytest.param({}, "\n", ["<s>", "▁", "<0x0A>"], id="newline"),
        pytest.param({}, "<0x0A>", ["<s>", "▁", *(f"<0x{b:02X}>" for b in b"<0x0A>")], id="spelled-byte"),
        pytest.param(tokens(*LETTERS), "</s>", ["<s>", "▁", "</", "s>"], id="spelled-control-token"),
        pytest.param({}, "a▁b", ["<s>", "▁", "a", "▁", "b"], id="sign-for-a-space"),
        pytest.param(tokens(("bc", 1, -0.5)), "abc", ["<s>", "▁", "abc"], id="best-score-first"),
        pytest.param(tokens(("bc", 1, -9.0)), "abc", ["<s>", "▁ab", "c"], id="worse-score-later"),
        pytest.param(tokens(("ba", 1, -5.0)), "aba", ["<s>", "▁ab", "a"], id="tie-by-id"),
        pytest.param(tokens(("bc", 5, -0.5)), "abc", ["<s>", "▁ab", "c"], id="unused-token"),
        pytest.param(tokens(("b c", 4, 0.0)), "ab c", ["<s>", "▁", "a", "b c"], id="user-token"),
        pytest.param(tokens(("b c", 4, 0.0)), "b ca", ["<s>", "b c", "▁", "a"], id="space-after-user-token"),
        pytest.param({"scores": [0.0] * 270}, "abc", ["<s>", "▁ab", "c"], id="no-scores-by-id"),
    ],
)  # fmt: skip
def test_what_a_text_becomes(changes: dict[str, Any], text: str, expected: list[str]) -> None:
    assert pieces(made(**changes), text) == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        pytest.param([], ["<s>", "▁ab", "</s>", "▁", "c"], id="after-each-control-token"),
        pytest.param([("[INST]", 3, 0.0)], ["<s>", "ab", "</s>", "c"], id="mistral-at-the-beginning-only"),
        pytest.param([("[INST]", 1, 0.0)], ["<s>", "▁ab", "</s>", "▁", "c"], id="not-a-control-token"),
    ],
)
def test_where_the_space_goes_in_a_chat(extra: list[tuple[str, int, float]], expected: list[str]) -> None:
    t = made(**tokens(*extra))
    assert pieces(t, "<s>ab</s>c", special=True, bos=False) == expected
    assert pieces(t, "ab", bos=False) == ["▁ab"]


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        pytest.param("phi3", ["<|end|>", "▁", "a", "<s>", "▁", "<0x0A>", "▁" , "a"], id="phi3"),
        pytest.param("llama", ["<|end|>", "▁", "<0x0A>", "a", "<s>", "▁", "<0x0A>", "▁", "a"], id="llama"),
    ],
)  # fmt: skip
def test_added_tokens_of_phi3_take_the_white_space_after_them(architecture: str, expected: list[str]) -> None:
    t = made(architecture, **tokens(("<|end|>", 3, 0.0)))
    assert pieces(t, "<|end|>\na<s>\n a", special=True, bos=False) == expected


@pytest.mark.parametrize("text", ["ab", " ab", "  a  b ", "é\n", "😀", "</s>", "<0x0A>", ""])
@pytest.mark.parametrize("prefix", [True, False])
def test_texts_come_back(text: str, prefix: bool) -> None:
    t = made(add_space_prefix=prefix)
    assert t.decode(t.encode(text)) == text


def test_a_character_without_a_token_is_refused() -> None:
    usual = tokens()
    bare = {key: values[:3] + values[259:] for key, values in usual.items()}
    t = made(**bare)
    assert pieces(t, "ab") == ["<s>", "▁ab"]
    with pytest.raises(RequestError, match="prompt: '<unk>' cannot be encoded other than as control token 0"):
        t.encode("é")


MANY = 50_000
HOSTILE: list[Any] = [
    pytest.param("scores", {"scores": None}, id="no-scores"),
    pytest.param("scores", {"scores": [0.0] * 3}, id="scores-too-few"),
    pytest.param("scores", {"scores": [0] * 270}, id="scores-not-real"),
    pytest.param("scores", {"scores": [float("nan")] + [0.0] * 269}, id="nan"),
    pytest.param("scores", {"scores": [0.0] * 269 + [float("-inf")]}, id="infinite"),
    pytest.param("scores", {"scores": "high"}, id="scores-text"),
    pytest.param("tokens", {"tokens": None}, id="no-tokens"),
    pytest.param("tokens", {"tokens": ["a"] * 270}, id="doubles"),
    pytest.param("tokens", {"tokens": ["", *map(str, range(269))]}, id="empty-token"),
    pytest.param("token_type", {"token_type": [1] * 269}, id="types-too-few"),
    pytest.param("token_type", {"token_type": [7] * 270}, id="type-beyond"),
    pytest.param("token_type", {"token_type": [0] * 270}, id="type-undefined"),
    pytest.param("token_type", {"token_type": None}, id="no-types"),
    pytest.param("tokens", tokens(("a" * 513, 1, 0.0)), id="token-too-long"),
    pytest.param("tokens", {"token_type": [6] * 270}, id="byte-that-is-none"),
    pytest.param("tokens", {"unknown_token_id": None, "token_type": [3] * 4 + [5] * 255 + [1] * 11}, id="no-way-out"),
    pytest.param("unknown_token_id", {"unknown_token_id": 270}, id="unknown-beyond"),
    pytest.param("unknown_token_id", {"unknown_token_id": -1}, id="unknown-below"),
    pytest.param("bos_token_id", {"bos_token_id": None}, id="no-begin-token"),
    pytest.param("add_space_prefix", {"add_space_prefix": 1}, id="prefix-not-boolean"),
    pytest.param("precompiled_charsmap", {"precompiled_charsmap": [1, 2]}, id="charsmap"),
    pytest.param("remove_extra_whitespaces", {"remove_extra_whitespaces": True}, id="removes-spaces"),
]


@pytest.mark.parametrize(("key", "changes"), HOSTILE)
def test_refused_with_file_and_key(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=rf"^tiny\.gguf: tokenizer\.ggml\.{key}: expected .*, found "):
        made(**changes)


@pytest.mark.parametrize(
    ("key", "texts", "score"),
    [
        pytest.param("scores", [f"t{i}" for i in range(MANY)], float("nan"), id="many-tokens"),
        pytest.param("tokens", ["a" * 10**6, "b"], 0.0, id="a-token-of-a-megabyte"),
        pytest.param("tokens", [f"{i:0512}" for i in range(8200)], 0.0, id="many-long-tokens"),
    ],
)
def test_a_large_file_is_refused_within_a_second(key: str, texts: list[str], score: float) -> None:
    start = time.process_time()
    with pytest.raises(TokenizerError, match=rf"^tiny\.gguf: tokenizer\.ggml\.{key}: expected "):
        made(tokens=texts, token_type=[1] * len(texts), scores=[0.0] * (len(texts) - 1) + [score])
    assert time.process_time() - start < 1
