"""A tokenizer from the metadata of a GGUF file: tokens, their types, merges, and the name of the pre-tokenizer.

GGUF names the pre-tokenizer ("tokenizer.ggml.pre") and leaves it to the reader to know what the name means; PRE does.
Touches no file.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers import decoders as backend_decoders

from ..errors import TokenizerError
from ..keys import Keys

NORMAL, UNKNOWN, CONTROL, USER, UNUSED = 1, 2, 3, 4, 5  # tokenizer.ggml.token_type

APOSTROPHES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{APOSTROPHES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"  # numbers in groups of up to three digits
QWEN2 = rf"{_WORDS}|\p{{N}}|{_REST}"  # every digit apart
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+END|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*END"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = rf"{_CASED.replace('END', '')}|\p{{N}}|{_SLASHED}"  # words end before a capital; every digit apart
GPT4O = rf"{_CASED.replace('END', APOSTROPHES + '?')}|\p{{N}}{{1,3}}|{_SLASHED}"

PRE = {  # name: what cuts the text before merging; None = the expression of GPT-2, which ByteLevel brings along
    "gpt-2": None,
    "default": None,
    "smollm": pre_tokenizers.Digits(individual_digits=True),
    "refact": pre_tokenizers.Digits(individual_digits=True),
    "llama-bpe": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "llama3": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "llama-v3": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "smaug-bpe": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "dbrx": pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
    "tekken": pre_tokenizers.Split(Regex(TEKKEN), "isolated"),
    "gpt-4o": pre_tokenizers.Split(Regex(GPT4O), "isolated"),
    "qwen2": pre_tokenizers.Split(Regex(QWEN2), "isolated"),
    "deepseek-r1-qwen": pre_tokenizers.Split(Regex(QWEN2), "isolated"),
}
WHOLE = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a word that is a token is not merged; begin with bos
QWEN = ("qwen2", "deepseek-r1-qwen")


def reader(values: dict[str, Any], source: str) -> Keys:
    """Typed access to the keys "tokenizer.ggml.…"; TokenizerError names the file and the key."""
    return Keys(values, source, prefix="tokenizer.ggml.", error=TokenizerError)


def build(values: dict[str, Any], source: str) -> Backend:
    """The tokenizer that the metadata `values` of the file `source` describe.

    Control and unknown tokens become special, user-defined ones plain added tokens; unused ones are left out."""
    meta = reader(values, source)
    if (model := meta.typed("model", str)) != "gpt2":
        meta.wrong("model", "gpt2 (byte-level BPE)", model)
    if (pre := meta.typed("pre", str, "default")) not in PRE:
        meta.wrong("pre", f"one of {', '.join(PRE)}", pre)
    tokens = meta.array("tokens", str)
    types = meta.array("token_type", int, len(tokens))
    backend = Backend(_bpe(meta, tokens, types, ignore_merges=pre in WHOLE))
    if pre in QWEN:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    prefix = meta.typed("add_space_prefix", bool, False)
    first = PRE[pre]
    split = isinstance(first, pre_tokenizers.Split)
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    backend.pre_tokenizer = level if first is None else pre_tokenizers.Sequence([first, level])  # type: ignore[assignment]
    backend.decoder = backend_decoders.ByteLevel()  # type: ignore[assignment]
    added = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL, USER)]
    backend.add_tokens([AddedToken(t, special=kind != USER, normalized=False) for t, kind in added])
    _surround(meta, backend, tokens, bos=meta.typed("add_bos_token", bool, pre in WHOLE))
    return backend


def _bpe(meta: Keys, tokens: list[str], types: list[int], ignore_merges: bool) -> models.BPE:
    vocab: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not NORMAL <= kind <= UNUSED:
            meta.wrong("token_type", "types 1 to 5", kind)
        if kind == UNUSED:
            continue
        if not token or vocab.setdefault(token, i) != i:
            meta.wrong("tokens", "tokens that are not empty and all different", token)
    merges = []
    for merge in meta.array("merges", str):
        left, space, right = merge.partition(" ")
        if not space or any(part not in vocab for part in (left, right, left + right)):
            meta.wrong("merges", "two tokens whose concatenation is a token", merge)
        merges.append((left, right))
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)


def _surround(meta: Keys, backend: Backend, tokens: list[str], bos: bool) -> None:
    """Have the post-processor put the begin token before a prompt and the end token after it, as the file asks."""
    before, after = ("bos", bos), ("eos", meta.typed("add_eos_token", bool, False))
    names: list[tuple[str, int]] = []
    for name, wanted in (before, after):
        i = meta.token_id(f"{name}_token_id", len(tokens))
        if wanted and i is None:
            meta.wrong(f"{name}_token_id", f"an id, as add_{name}_token is true", None)
        if wanted and i is not None:
            names.append((tokens[i], i))
    if names:
        order = ([tokens[names[0][1]]] if bos else []) + ["$A"] + ([names[-1][0]] if after[1] else [])
        backend.post_processor = processors.TemplateProcessing(single=order, special_tokens=names)  # type: ignore[assignment]
