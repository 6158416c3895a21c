"""How each pre-tokenizer cuts a text, by its name. The expected cuts are those of the expressions in transformers.

test_real_vocabularies.py compares ids, for the names of which a package ships a real vocabulary.
"""

from __future__ import annotations

import time

import pytest
from vocabularies import gguf

from ostinato.text.gguf_vocab import build
from ostinato.text.pre_tokenizers import DEEPSEEK3, GPT4O, LLAMA3, PRE, QWEN2, QWEN35, TEKKEN

TEXT = "They'll Say helloWorld 12345 a//\nb"
GPT2 = ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ12345", "Ġa", "//", "Ċ", "b"]
DIGITS = ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//", "Ċ", "b"]
LLAMA = ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "123", "45", "Ġa", "//Ċ", "b"]
QWEN = ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//Ċ", "b"]
CASED = ["They'll", "ĠSay", "Ġhello", "World", "Ġ", "123", "45", "Ġa", "//Ċ", "b"]
CUTS = {
    **dict.fromkeys(("gpt-2", "default", "phi-2", "olmo", "mpt", "granite-docling", "modern-bert", "mellum"), GPT2),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r", "exaone", "minerva-7b"), DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"), LLAMA),
    **dict.fromkeys(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), LLAMA),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "hunyuan", "megrez", "qwen35"), QWEN),
    "tekken": ["They", "'ll", "ĠSay", "Ġhello", "World", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//Ċ", "b"],
    **dict.fromkeys(("gpt-4o", "llama4"), CASED),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense"), LLAMA),
    "deepseek-coder": ["They", "'", "ll", "ĠSay", "ĠhelloWorld", "Ġ", *"12345", "Ġa", "//", "Ċ", "b"],
}
OTHER = [  # texts that distinguish expressions which split TEXT alike
    pytest.param("qwen2", "ab\u093e(\u093e", ["ab", "\u093e(\u093e"], id="qwen2-mark-is-a-sign"),
    pytest.param("qwen35", "ab\u093e(\u093e", ["ab\u093e", "(\u093e"], id="qwen35-mark-is-a-letter"),
    pytest.param("deepseek-v3", "ab\u4e2d\u6587cd", ["ab", "\u4e2d\u6587", "cd"], id="deepseek-v3-chinese"),
    pytest.param("deepseek-coder", "ab\u4e2d\u6587cd", ["ab", "\u4e2d\u6587", "cd"], id="deepseek-coder-chinese"),
    pytest.param("llama-bpe", "ab\u4e2d\u6587cd", ["ab\u4e2d\u6587cd"], id="llama-chinese-is-letters"),
    pytest.param("deepseek-v3", "a#b $c", ["a", "#b", " $", "c"], id="deepseek-v3-sign-and-word"),
    pytest.param("llama-bpe", "WE'RE", ["WE", "'RE"], id="llama-capitals"),
    pytest.param("gpt-2", "WE'RE", ["WE", "'", "RE"], id="gpt2-small-letters-only"),
]


def cut(pre: str, text: str) -> list[str]:
    backend = build(gguf(pre).metadata, "x.gguf")
    assert backend.pre_tokenizer is not None
    return [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def test_every_name_is_tried() -> None:
    assert set(CUTS) == set(PRE)


@pytest.mark.parametrize("pre", CUTS)
def test_cuts(pre: str) -> None:
    assert cut(pre, TEXT) == CUTS[pre]


@pytest.mark.parametrize(("pre", "text", "expected"), OTHER)
def test_cuts_otherwise(pre: str, text: str, expected: list[str]) -> None:
    spelled = [cut("gpt-2", piece) for piece in expected]
    assert cut(pre, text) == ["".join(pieces) for pieces in spelled]


@pytest.mark.parametrize("pre", PRE)
def test_a_long_text_is_cut_in_time_that_grows_with_it(pre: str) -> None:
    backend = build(gguf(pre).metadata, "x.gguf")
    start = time.process_time()
    for text in ("a" * 20_000, " " * 20_000, "1" * 20_000, "(" * 20_000, "\n" * 20_000, "aB" * 10_000):
        assert backend.pre_tokenizer is not None
        backend.pre_tokenizer.pre_tokenize_str(text)
    assert time.process_time() - start < 2


def test_expressions_are_those_of_transformers() -> None:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    for found, end, digits in ((TEKKEN, "", r"\p{N}"), (GPT4O, r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")):
        assert found == (
            rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{end}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{end}"
            rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    for found, letters, digits in (
        (LLAMA3, r"\p{L}", r"\p{N}{1,3}"), (QWEN2, r"\p{L}", r"\p{N}"), (QWEN35, r"[\p{L}\p{M}]", r"\p{N}")
    ):  # fmt: skip
        signs = r"[^\s\p{L}\p{M}\p{N}]" if "M" in letters else r"[^\s\p{L}\p{N}]"
        assert found == (
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}"
            rf"| ?{signs}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    assert DEEPSEEK3[2] == (
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ).replace('\\"', '"')
