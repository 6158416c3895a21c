"""Encoding: from files and metadata, with and without control tokens; every bad file is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from vocabularies import KINDS, byte_level, gguf, sentencepiece

from ostinato.errors import RequestError, TokenizerError
from ostinato.text.tokenizer import Tokenizer
from ostinato.weights.checkpoint import open_checkpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TEXTS = [
    "",
    "hello the ab",
    "½",
    "12345",
    "😀 🇩🇪",
    "a\r\nb\n\n c\t \n",
    "  two  spaces ",
    "naïve ﬁ",
    "x" * 500,
    "日本語",
]


def directory(path: Path) -> Any:
    """What Tokenizer needs of an open checkpoint directory."""
    return SimpleNamespace(directory=path, metadata=None, source=path)


def pieces(t: Tokenizer, text: str) -> list[str]:
    return [t.decode([i]) for i in t.encode(text, bos=False)]


@pytest.mark.parametrize("text", [pytest.param(text, id=repr(text)[:12]) for text in TEXTS])
def test_round_trip(backend: Backend, text: str) -> None:
    t = Tokenizer(backend, "tiny")
    ids = t.encode(text, bos=False)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    if isinstance(backend.pre_tokenizer, pre_tokenizers.Metaspace):
        text = text.removeprefix(" ")  # it puts no space before one, and takes it for its own in decoding
    assert t.decode(ids) == text == backend.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_user_text_holds_no_control_token(kind: str) -> None:
    t = Tokenizer(KINDS[kind](), "tiny")
    for i, control in t.control.items():
        assert t.encode(control, special=True, bos=False)[-1] == i  # after a ▁ where there is one
        ids = t.encode(f"a{control}b", bos=False)
        assert not t.control.keys() & set(ids)
        assert t.decode(ids) == f"a{control}b"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_in_parts_has_the_ids_of_the_whole(kind: str) -> None:
    """A Metaspace of the scheme "first" puts a space before the beginning only, not after a control token."""
    t = Tokenizer(KINDS[kind](), "tiny")
    control = t.control[1]
    for text in (f"{control}ab b{control}a", f"ab{control}ab", f" a{control}{control} b"):
        assert t.encode_marked(text, lambda part: part) == t.encode(text, special=True, bos=False)
    assert t.encode("ab", bos=False) == t.encode("ab", special=True, bos=False)


def test_plain_added_tokens_are_read_everywhere(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("<think>") == [3]


def test_control_token_spelled_by_the_vocabulary() -> None:
    backend = Backend(models.WordLevel({"stop": 0, "[UNK]": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(["stop"])
    with pytest.raises(RequestError, match="'stop' cannot be encoded other than as control token 0"):
        Tokenizer(backend, "tiny").encode("stop")


def test_begin_token_by_post_processor() -> None:
    t = Tokenizer(sentencepiece(), "tiny")
    assert t.encode("ab") == [1, *t.encode("ab", bos=False)]
    assert t.encode("ab", special=True) == t.encode("ab")


def test_marks_stand_for_plain_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_marked(
        "<|im_start|>hello MARK<|im_end|>", lambda part: part.replace("MARK", "<|im_end|> ab")
    )
    assert [i for i in ids if i in tokenizer.control] == [1, 2]
    assert ids == [1, *tokenizer.encode("hello <|im_end|> ab"), 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(3, "prompt: expected a text, found 3", id="number"),
        pytest.param(b"ab", "prompt: expected a text", id="bytes"),
        pytest.param(None, "prompt: expected a text", id="none"),
        pytest.param("ab\ud800", "half a surrogate pair at character 2", id="surrogate"),
    ],
)
def test_prompt_refused(tokenizer: Tokenizer, text: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        tokenizer.encode(text)


def test_byte_without_token_is_refused_not_dropped() -> None:
    tokens = gguf().metadata["tokenizer.ggml.tokens"]
    types = [5 if token == "Ą" else 3 if i < 3 else 1 for i, token in enumerate(tokens)]  # Ą spells byte 4
    t = Tokenizer.from_checkpoint(gguf(token_type=types))
    assert t.decode(t.encode("ab")) == "ab"
    with pytest.raises(RequestError, match="prompt: expected bytes that the vocabulary has, found 0x04"):
        t.encode("a\x04b")


# -- GGUF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        pytest.param("gpt-2", "1234 ab", ["1234", " ", "ab"], id="gpt2-merges-digits"),
        pytest.param("default", "1234", ["1234"], id="default-is-gpt2"),
        pytest.param("smollm", "1234 ab", ["1", "2", "3", "4", " ", "ab"], id="smollm-digits-apart"),
        pytest.param("llama-bpe", "1234", ["123", "4"], id="llama-digits-by-three"),
        pytest.param("llama-bpe", "hello", ["hello"], id="llama-takes-whole-words"),
        pytest.param("tekken", "hello", ["hello"], id="tekken-takes-whole-words"),
        pytest.param("gpt-2", "hello", ["hell", "o"], id="gpt2-takes-merges-only"),
        pytest.param("gpt-4o", "hello", ["hell", "o"], id="gpt4o-takes-merges-only"),
        pytest.param("qwen2", "1234", ["1", "2", "3", "4"], id="qwen-digits-apart"),
        pytest.param("qwen2", "e\u0301", ["\ufffd", "\ufffd"], id="qwen-composes"),
        pytest.param("gpt-2", "e\u0301", ["e", "\ufffd", "\ufffd"], id="gpt2-does-not"),
    ],
)
def test_pre_tokenizer(pre: str, text: str, expected: list[str]) -> None:
    merges = ["1 2", "12 3", "123 4", "a b", "h e", "he l", "hel l", "Ġ a"]
    assert pieces(Tokenizer.from_checkpoint(gguf(pre, merges=merges)), text) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        pytest.param({}, ["ab"], id="gpt2-none"),
        pytest.param({"pre": "llama-bpe"}, ["<|im_start|>", "ab"], id="llama-begins"),
        pytest.param({"pre": "tekken"}, ["<|im_start|>", "ab"], id="tekken-begins"),
        pytest.param({"pre": "glm4"}, ["ab"], id="glm4-does-not"),
        pytest.param({"pre": "llama-bpe", "add_bos_token": False}, ["ab"], id="told-not-to"),
        pytest.param({"add_bos_token": True}, ["<|im_start|>", "ab"], id="told-to"),
        pytest.param({"add_eos_token": True}, ["ab", "<|im_end|>"], id="end-as-well"),
        pytest.param(
            {"add_bos_token": True, "add_eos_token": True, "eos_token_id": 1}, ["<|im_start|>", "ab", "<|im_start|>"],
            id="both-the-same",
        ),
    ],
)  # fmt: skip
def test_gguf_surrounds_prompt(changes: dict[str, Any], expected: list[str]) -> None:
    t = Tokenizer.from_checkpoint(gguf(**changes))
    assert [t.decode([i], skip_special=False) for i in t.encode("ab")] == expected


def test_gguf_token_types() -> None:
    t = Tokenizer.from_checkpoint(gguf())
    assert list(t.control) == [0, 1, 2] and (t.bos_id, t.eos_ids) == (1, (2,))
    assert t.encode("<think>") == [3]
    assert t.decode([1, 3, 2]) == "<think>"


def test_gguf_unused_tokens_are_unknown() -> None:
    tokens = [*gguf().metadata["tokenizer.ggml.tokens"], "[PAD]", "[PAD]"]
    types = [*gguf().metadata["tokenizer.ggml.token_type"], 5, 5]
    t = Tokenizer.from_checkpoint(gguf(tokens=tokens, token_type=types))
    assert t.unknown(len(tokens) + 1) == (len(tokens) - 2, len(tokens) - 1, len(tokens))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        pytest.param("model", {"model": "t5"}, id="other-model"),
        pytest.param("model", {"model": None}, id="no-model"),
        pytest.param("model", {"model": 3}, id="model-not-text"),
        pytest.param("pre", {"pre": "qwen99"}, id="unknown-pre"),
        pytest.param("tokens", {"tokens": None}, id="no-tokens"),
        pytest.param("tokens", {"tokens": [1, 2]}, id="tokens-not-text"),
        pytest.param("tokens", {"tokens": ["a"] * 3, "token_type": [1] * 3}, id="duplicate-token"),
        pytest.param("tokens", {"tokens": ["a", ""], "token_type": [1] * 2}, id="empty-token"),
        pytest.param("token_type", {"token_type": [1]}, id="types-too-few"),
        pytest.param("token_type", {"token_type": None}, id="no-types"),
        pytest.param("token_type", {"tokens": ["a"], "token_type": [9]}, id="unknown-type"),
        pytest.param("merges", {"merges": None}, id="no-merges"),
        pytest.param("merges", {"merges": ["ab"]}, id="merge-of-one"),
        pytest.param("merges", {"merges": ["zz y"]}, id="merge-of-no-token"),
        pytest.param("bos_token_id", {"bos_token_id": 10**6}, id="bos-beyond-tokens"),
        pytest.param("bos_token_id", {"bos_token_id": None, "add_bos_token": True}, id="bos-missing"),
        pytest.param("eos_token_id", {"eos_token_id": True}, id="eos-boolean"),
        pytest.param("add_bos_token", {"add_bos_token": 1}, id="add-bos-not-boolean"),
    ],
)
def test_gguf_refused(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=rf"^tiny\.gguf: tokenizer\.ggml\.{key}: expected .*, found "):
        Tokenizer.from_checkpoint(gguf(**changes))


# -- tokenizer.json -----------------------------------------------------------------------------------------------


def save(path: Path, backend: Backend, config: dict[str, Any] | None = None) -> Any:
    backend.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    return directory(path)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in FIXTURES.glob("*/generation_config.json")))
def test_fixture(name: str) -> None:
    with open_checkpoint(FIXTURES / name) as checkpoint:
        t = Tokenizer.from_checkpoint(checkpoint)
        rows = checkpoint.config.get("text_config", checkpoint.config)["vocab_size"]
    assert t.decode(t.encode("naïve ½ <|im_end|>")) == "naïve ½ <|im_end|>"
    assert t.unknown(rows) == tuple(range(272, rows))


def test_baked_in_truncation_and_padding_are_off(tmp_path: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    t = Tokenizer.from_checkpoint(save(tmp_path, backend))
    assert t.decode(t.encode("z" * 99), skip_special=False) == "z" * 99
    assert len(t.encode("z")) == 1


def test_token_names(tmp_path: Path) -> None:
    config = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "pad_token": None}
    t = Tokenizer.from_checkpoint(save(tmp_path, byte_level(), config))
    assert (t.bos_id, t.eos_ids) == (1, (2,))
    assert t.names == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        pytest.param({"eos_token": 3}, "tokenizer_config.json: eos_token: expected a string, found 3", id="not-text"),
        pytest.param({"eos_token": "<eot>"}, "eos_token: expected a token, found '<eot>'", id="no-such-token"),
        pytest.param(
            {"added_tokens_decoder": {"300": {"content": "<new>"}}},
            "added_tokens_decoder: 300: expected",
            id="new-token",
        ),
        pytest.param(
            {"added_tokens_decoder": {"9": {"content": "<|im_end|>"}}},
            "added_tokens_decoder: 9: expected",
            id="other-id",
        ),
        pytest.param([], "tokenizer_config.json: expected a JSON object", id="not-object"),
    ],
)
def test_config_refused(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_checkpoint(save(tmp_path, byte_level(), config))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut-off"),
        pytest.param(b"{}", id="no-model"),
        pytest.param(b"\xff\xfe", id="not-utf8"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}', id="no-tokens"),
        pytest.param(b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}', id="merge-of-no-token"),
        pytest.param(b'{"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}', id="no-decoder"),
    ],
)
def test_tokenizer_json_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: ") as e:
        Tokenizer.from_checkpoint(directory(tmp_path))
    assert "\n" not in str(e.value)


def test_tokens_beyond_the_embedding_are_refused(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown(tokenizer.vocab_size) == ()
    with pytest.raises(TokenizerError, match=rf"expected ids below the 100 rows .*, found {tokenizer.vocab_size - 1}"):
        tokenizer.unknown(100)


@pytest.mark.parametrize(
    ("changes", "ids"),
    [
        pytest.param({}, (2,), id="eos"),
        pytest.param({"eot_token_id": 0, "eom_token_id": 3}, (2, 0, 3), id="turn and message"),
        pytest.param({"eos_token_id": None, "eot_token_id": 0}, (0,), id="turn alone"),
        pytest.param({"eot_token_id": 2, "eom_token_id": 2}, (2,), id="once each"),
        pytest.param({"eos_token_id": None}, (), id="none"),
    ],
)
def test_end_tokens_of_gguf(changes: dict[str, Any], ids: tuple[int, ...]) -> None:
    assert Tokenizer.from_checkpoint(gguf(**changes)).eos_ids == ids


def test_a_begin_token_that_the_text_spells_is_not_doubled() -> None:
    t = Tokenizer(sentencepiece(), "tiny")
    assert t.encode("<s>a", special=True) == t.encode("a", special=True)
    assert t.encode("<s><s>a", special=True)[:3] == [1, 1, *t.encode("a", bos=False)[:1]]
