"""The splits of each named pre-tokenizer of GGUF files, against the regular expressions of transformers."""

from __future__ import annotations

import pytest
from vocabularies import gguf

from ostinato.text.gguf_vocab import GPT4O, TEKKEN, build

TEXT = "They'll Say helloWorld 12345 a//\nb"
LLAMA = ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "123", "45", "Ġa", "//Ċ", "b"]
CUTS = {
    "gpt-2": ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ12345", "Ġa", "//", "Ċ", "b"],
    "refact": ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//", "Ċ", "b"],
    "llama-bpe": LLAMA,
    "smaug-bpe": LLAMA,
    "dbrx": LLAMA,
    "tekken": ["They", "'ll", "ĠSay", "Ġhello", "World", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//Ċ", "b"],
    "gpt-4o": ["They'll", "ĠSay", "Ġhello", "World", "Ġ", "123", "45", "Ġa", "//Ċ", "b"],
    "qwen2": ["They", "'ll", "ĠSay", "ĠhelloWorld", "Ġ", "1", "2", "3", "4", "5", "Ġa", "//Ċ", "b"],
}


@pytest.mark.parametrize("pre", CUTS)
def test_cuts(pre: str) -> None:
    backend = build(gguf(pre).metadata, "x.gguf")
    assert backend.pre_tokenizer is not None
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(TEXT)] == CUTS[pre]


def test_expressions_are_those_of_transformers() -> None:
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    for found, end, digits in ((TEKKEN, "", r"\p{N}"), (GPT4O, r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")):
        assert found == (
            rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{end}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{end}"
            rf"|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
