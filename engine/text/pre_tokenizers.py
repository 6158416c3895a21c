"""The pre-tokenizers of byte-level vocabularies in GGUF files. They split a text into words before merging.

A GGUF file has only the name of its pre-tokenizer, "tokenizer.ggml.pre". PRE maps each name to the steps in the
tokenizer.json of the same models.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tokenizers import Regex, pre_tokenizers

APOSTROPHES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{APOSTROPHES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"  # numbers are split into groups of up to three digits
QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"  # each digit is a word
# QWEN2 with combining marks as letters
QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
_SLASHED = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
TEKKEN = rf"{_CASED.replace('END', '')}|\p{{N}}|{_SLASHED}"  # a word ends before a capital; each digit is a word
GPT4O = rf"{_CASED.replace('END', APOSTROPHES + '?')}|\p{{N}}{{1,3}}|{_SLASHED}"
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",  # Chinese and Japanese
    rf"{_ASCII_SIGNS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}")


class Pre(NamedTuple):
    """The meaning of one name."""

    steps: tuple[Any, ...] = ()  # pre-tokenizers, applied in this order
    gpt2: bool = False  # GPT-2's expression is the last step
    whole: bool = False  # a word that is a token is not merged
    bos: bool = False  # a prompt begins with the begin token, unless the file says otherwise
    nfc: bool = False  # Unicode normal form C is applied first


def _splits(*expressions: str, **flags: bool) -> Pre:
    return Pre(tuple(pre_tokenizers.Split(Regex(e), "isolated") for e in expressions), **flags)


_GPT2 = Pre(gpt2=True)
_DIGITS = Pre((pre_tokenizers.Digits(individual_digits=True),), gpt2=True)
_LLAMA3, _LLAMA3_WHOLE = _splits(LLAMA3), _splits(LLAMA3, whole=True, bos=True)
_QWEN2, _QWEN2_NFC = _splits(QWEN2), _splits(QWEN2, nfc=True)
_GPT4O, _DEEPSEEK3 = _splits(GPT4O), _splits(*DEEPSEEK3)

PRE: dict[str, Pre] = {
    **dict.fromkeys(("gpt-2", "default", "phi-2", "olmo", "mpt", "granite-docling", "modern-bert", "mellum"), _GPT2),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r", "exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), _LLAMA3_WHOLE),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN2_NFC),
    **dict.fromkeys(("hunyuan", "megrez"), _QWEN2),
    "qwen35": _splits(QWEN35, nfc=True),
    "tekken": _splits(TEKKEN, whole=True, bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), _DEEPSEEK3),
    "deepseek-coder": _splits(*DEEPSEEK_CODER),
}
