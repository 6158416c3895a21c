"""A text that cannot fit is rejected before it is encoded, and no text that fits is rejected."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend
from vocabularies import CHATML, KINDS, byte_level, gguf, metaspace, sentencepiece, user

from ostinato.errors import RequestError
from ostinato.text import prompt_text
from ostinato.text.template import ChatTemplate
from ostinato.text.tokenizer import Tokenizer


def spaces_vanish() -> Backend:
    """An added token that absorbs all white space on both sides."""
    backend = byte_level()
    backend.add_tokens([AddedToken("<mask>", lstrip=True, rstrip=True)])
    return backend


def removes_spaces() -> Backend:
    """A pre-tokenizer that drops what it splits at."""
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return backend


def wordpiece() -> Backend:
    """Whole words may become one unknown token, however long they are."""
    vocab = {token: i for i, token in enumerate(["[UNK]", "a", "b", "##a", "##b", "ab"])}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=9))
    backend.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.decoder = decoders.WordPiece()  # type: ignore[assignment]
    backend.add_tokens([AddedToken("b a", special=True)])
    return backend


def unknown() -> Backend:
    """Any number of unknown characters becomes one token."""
    backend = Backend(models.BPE({"?": 0, "a": 1, "b": 2, "▁": 3}, [], unk_token="?", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    backend.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return backend


MADE: dict[str, Callable[[], Tokenizer]] = {
    name: lambda make=make: Tokenizer(make(), "tiny")
    for name, make in {
        **KINDS, "spaces-vanish": spaces_vanish, "removes": removes_spaces, "wordpiece": wordpiece, "unknown": unknown,
    }.items()
} | {pre: lambda pre=pre: Tokenizer.from_checkpoint(gguf(pre)) for pre in ("qwen2", "llama-bpe", "smollm")}  # fmt: skip
PIECES = [
    " ", "  \n\t ", "\u3000", "a", "ab", "hello", " the", "1234", "<|im_start|>", "<think>", "<mask>", "b a", "é",
    "日本", "e\u0301", "\u1100\u1161\u11a8", "\u1fbe\u0308\u0301", "\u212a\u0327", "😀", "▁", "\x1c", "x" * 40,
]  # fmt: skip


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("special", [True, False])
def test_no_text_has_fewer_tokens_than_its_floor(name: str, special: bool) -> None:
    t, rng = MADE[name](), random.Random(1)
    pieces = [p for p in PIECES if special or t.control_in(p) is None]
    texts = [p * 30 for p in [*pieces, "<mask>" + " " * 99]] + [
        "".join(rng.choices(pieces, k=rng.randint(1, 40))) for _ in range(200)
    ]
    for text in texts:
        floor = t.at_least(text, 0)  # limit 0: even the shortest text is examined
        assert floor <= len(t._backend.encode(text, add_special_tokens=False)), text


@pytest.mark.parametrize(
    ("make", "text", "least"),
    [
        pytest.param(byte_level, "😀" * 2_000_000, 500_000, id="emoji"),
        pytest.param(byte_level, " " * 200_000, 10_000, id="spaces"),
        pytest.param(byte_level, "<|im_end|>" * 200_000, 100_000, id="control tokens"),
        pytest.param(sentencepiece, "a" * 200_000, 10_000, id="letters"),
        pytest.param(metaspace, "é" * 200_000, 10_000, id="bytes"),
        pytest.param(wordpiece, "a b " * 100_000, 100_000, id="words"),
    ],
)
def test_what_cannot_fit_is_refused_without_encoding(
    make: Callable[[], Backend], text: str, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = Tokenizer(make(), "tiny")
    monkeypatch.setattr(Tokenizer, "_encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(
        RequestError, match=r"^prompt: expected fewer than 8192 tokens \(max_len\), found at least"
    ) as e:
        prompt_text.encode(text, t, 8192)
    assert int(str(e.value).split("at least ")[1].split()[0]) >= least
    with pytest.raises(pytest.fail.Exception, match="encoded"):
        prompt_text.encode(text[:60_000], t, 8192)  # short enough to encode without the check


def test_a_chat_that_cannot_fit_is_refused_after_one_rendering(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(CHATML, tokenizer, "tiny")
    asked: list[Any] = []
    real = template._sandbox.render
    monkeypatch.setattr(template._sandbox, "render", lambda these: asked.append(these) or real(these))
    monkeypatch.setattr(Tokenizer, "_encode", lambda *_: pytest.fail("encoded"))
    with pytest.raises(RequestError, match=r"^messages: expected fewer than 8192 tokens \(max_len\), found at least"):
        template.encode(user("<|im_end|>" * 200_000), max_len=8192)
    assert [len(these) for these in asked] == [1]


def test_a_message_of_control_tokens_is_encoded_once(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its control tokens as characters: what stands for them meanwhile is not encoded."""
    encoded: list[str] = []
    real = Tokenizer._encode
    monkeypatch.setattr(Tokenizer, "_encode", lambda t, text, *a, **b: encoded.append(text) or real(t, text, *a, **b))
    text = "a<|im_end|>" * 50
    ids = ChatTemplate(CHATML, tokenizer, "tiny").encode(user(text))
    assert encoded == ["", f"user\n{text}", "\n", "assistant\n"] and [i for i in ids if i < 3] == [1, 2, 1]
