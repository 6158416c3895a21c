"""Builds small tokenizers of all supported kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from ostinato.text.detokenizer import ALPHABET

CONTROL = ["<|end|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
PLAIN = ["<think>", "</think>"]  # added, but not control: ids 3, 4
WORDS = [(a, b) for word in ("ab", "hello", "the", "12", "123", "1234") for a, b in [(word[:-1], word[-1])]]
MERGES = [*WORDS, ("h", "e"), ("he", "l"), ("hel", "l"), ("t", "h"), ("Ġ", "a"), ("Ġ", "the")]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def gguf_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """Metadata of a GGUF file with a byte-level vocabulary of 274 tokens and a few merges; changes by short key."""
    letters = [*CONTROL, *PLAIN, *ALPHABET]
    tokens = [*letters, *dict.fromkeys(a + b for a, b in MERGES)]
    types = [3] * len(CONTROL) + [4] * len(PLAIN) + [1] * (len(tokens) - len(CONTROL) - len(PLAIN))
    values = {
        "model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": [f"{a} {b}" for a, b in MERGES],
        "bos_token_id": 1, "eos_token_id": 2, **changes,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def gguf(pre: str = "gpt-2", template: Any = None, **changes: Any) -> Any:
    """A stand-in for an open GGUF checkpoint, for Tokenizer and ChatTemplate."""
    values = gguf_metadata(pre, **changes) | ({} if template is None else {"tokenizer.chat_template": template})
    return SimpleNamespace(directory=None, metadata=values, source=Path("tiny.gguf"), config={}, generation_config={})


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of a GGUF file with a SentencePiece vocabulary of 14 tokens and 256 bytes; changes by short key.

    "abc" has a better score than "ab", and cannot be reached: "bc" is no token."""
    words = ["▁", "a", "b", "c", "▁▁", "ab", "▁ab", "abc", "</", "s>", "</s"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))]
    values = {
        "model": "llama", "pre": "default", "tokens": tokens, "scores": scores,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0, **changes,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def byte_level() -> Backend:
    """Byte-level BPE, as in GPT-2, Llama 3 and Qwen."""
    vocab = {token: i for i, token in enumerate(gguf_metadata()["tokenizer.ggml.tokens"])}
    backend = Backend(models.BPE(vocab=vocab, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(CONTROL)
    backend.add_tokens(PLAIN)
    return backend


def sentencepiece() -> Backend:
    """SentencePiece, as in Llama 2: a space before every text, ▁ for spaces, <0x00> for bytes without a token."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    letters = [chr(c) for c in range(33, 127)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, "▁", *letters, "▁a", "ab", "▁ab"])}
    merges = [("▁", "a"), ("a", "b"), ("▁a", "b")]
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    return backend


def metaspace() -> Backend:
    """The same vocabulary with Metaspace, which puts ▁ before a text only."""
    backend = sentencepiece()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "byte-level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace,
}  # fmt: skip


def user(*contents: str) -> list[dict[str, str]]:
    """A conversation of these texts, by the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
