"""Decoding token by token gives the same text as decoding all tokens together, as early as possible."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from vocabularies import KINDS, byte_level, sentencepiece

from ostinato.errors import RequestError, TokenizerError
from ostinato.text.detokenizer import ALPHABET, Decoder, Spelling
from ostinato.text.tokenizer import Tokenizer

CODES = [code for code in range(0x80, 0x110000, 64) if not 0xD800 <= code < 0xE000]  # one of each 64: they differ in
UNFINISHED = {chr(code).encode()[:n] for code in CODES for n in range(1, len(chr(code).encode()))}  # the last byte only


def complete(data: bytes) -> str:
    """The text of all bytes except an unfinished character at the end; a slow reference implementation."""
    cut = max((n for n in range(1, 4) if n <= len(data) and data[-n:] in UNFINISHED), default=0)
    return data[: len(data) - cut].decode(errors="replace")


def random_ids(t: Tokenizer, seed: int) -> list[int]:
    """Tokens of real text, cut anywhere and mixed with random tokens: all kinds of broken characters."""
    rng = random.Random(seed)
    alphabet = [
        "a",
        "ab",
        " ",
        "  ",
        "é",
        "½",
        "日本",
        "😀",
        "🇩🇪",
        "\n",
        "\x00",
        "\ufffd",
        "\u0301",
        "<|im_end|>",
        "</s>",
    ]
    ids: list[int] = []
    for _ in range(40):
        some = t.encode("".join(rng.choices(alphabet, k=rng.randrange(4))), special=rng.random() < 0.3, bos=False)
        ids += some[: rng.randrange(len(some) + 1)]
        ids += rng.choices(range(t.vocab_size), k=rng.randrange(3))
    return ids


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("skip_special", [True, False])
def test_pushed_text_is_the_decoded_text(backend: Backend, seed: int, skip_special: bool) -> None:
    t = Tokenizer(backend, "tiny")
    ids = random_ids(t, seed)
    d = t.incremental(skip_special)
    streamed = "".join([d.push(i) for i in ids]) + d.flush()
    first = 0 if isinstance(backend.decoder, decoders.ByteLevel) else 1  # only a whole text drops its first space
    assert t.decode(ids, skip_special) == (streamed[first:] if streamed[:1] == " " else streamed)


@pytest.mark.parametrize("seed", range(20))
def test_broken_bytes_decode_as_the_package_decodes_them(seed: int) -> None:
    backend = byte_level()
    t = Tokenizer(backend, "tiny")
    ids = random_ids(t, seed)
    assert t.decode(ids) == backend.decode(ids)
    assert t.decode(ids, skip_special=False) == backend.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(50))
def test_only_an_unfinished_character_is_held_back(seed: int) -> None:
    rng = random.Random(seed)
    data = b"".join(rng.choice([b"a", b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"\x98", b"\xff"])
                    for _ in range(30))  # fmt: skip
    d = Decoder(lambda i: bytes([i]), 0)
    shown = ""
    for n, byte in enumerate(data, 1):
        shown += d.push(byte)
        assert shown == complete(data[:n])
    assert shown + d.flush() == data.decode(errors="replace")


@pytest.mark.parametrize(
    ("pushed", "shown"),
    [
        pytest.param(["a", "b"], ["a", "b", ""], id="plain"),
        pytest.param([b"\xf0\x9f", b"\x98\x80"], ["", "😀", ""], id="emoji-in-two"),
        pytest.param([b"a\xe2", b"\x82", b"\xacb"], ["a", "", "€b", ""], id="text-round-a-cut"),
        pytest.param([b"\xe2\x82"], ["", "\ufffd"], id="never-finished"),
        pytest.param([b"\xe2\x82", "a"], ["", "\ufffda", ""], id="broken-off"),
        pytest.param(["\ufffd"], ["\ufffd", ""], id="real-replacement-character"),
        pytest.param([b"\xff", b"\xff"], ["\ufffd", "\ufffd", ""], id="never-valid"),
    ],
)
def test_pushes(pushed: list[Any], shown: list[str]) -> None:
    parts = [part if isinstance(part, bytes) else part.encode() for part in pushed]
    d = Decoder(parts.__getitem__, 0)
    assert [d.push(i) for i in range(len(parts))] + [d.flush()] == shown


def test_each_token_is_examined_once() -> None:
    seen: list[int] = []
    d = Decoder(lambda i: seen.append(i) or b"\xe2\x82", 0)  # never a complete character
    for i in range(1000):
        d.push(i)
    assert seen == list(range(1000))


@pytest.mark.parametrize("kind", ["sentencepiece", "metaspace"])
def test_space_before_a_text(kind: str) -> None:
    t = Tokenizer(KINDS[kind](), "tiny")
    ids = t.encode("ab ab", bos=False)
    assert t.decode(ids) == "ab ab"
    d = t.incremental()
    assert [d.push(i) for i in ids] + [d.flush()] == [" ab", " ab", ""]  # continues a prompt: the space is text
    assert t.decode([1, *ids]) == "ab ab"


def test_byte_tokens() -> None:
    t = Tokenizer(sentencepiece(), "tiny")
    d = t.incremental()
    assert [d.push(3 + b) for b in "€".encode()] == ["", "", "€"]


def test_alphabet_is_one_to_one() -> None:
    assert sorted(ALPHABET.values()) == list(range(256)) and len(ALPHABET) == 256
    assert ALPHABET["Ġ"] == 32 and ALPHABET["Ċ"] == 10 and ALPHABET["a"] == 97


def test_unknown_id(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"token id: expected one of the tokenizer's .*, found 5000"):
        tokenizer.decode([5, 5000])


STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(None, id="none"),
        pytest.param({"type": "BPEDecoder", "suffix": "</w>"}, id="bpe-with-suffix"),
        pytest.param({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}, id="replace-by-expression"),
        pytest.param(STRIP, id="strip-each-token"),
        pytest.param({"type": "Sequence", "decoders": [{"type": "Fuse"}, {**STRIP, "stop": 1}]}, id="strip-at-the-end"),
        pytest.param({"type": "Sequence", "decoders": [{"type": "ByteLevel"}, {"type": "ByteFallback"}]}, id="mixture"),
        pytest.param({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}]}, id="nested"),
    ],
)  # fmt: skip
def test_decoder_refused(decoder: Any) -> None:
    with pytest.raises(TokenizerError, match=r"^tiny: decoder: "):
        Spelling(decoder, "tiny")


def test_decoder_in_sequence_of_one() -> None:
    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    t = Tokenizer(backend, "tiny")
    assert t.decode(t.encode("the ½")) == "the ½"
