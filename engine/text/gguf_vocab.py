"""A tokenizer from the metadata of a GGUF file: tokens, their types, merges, and the name of the pre-tokenizer.

GGUF names the pre-tokenizer ("tokenizer.ggml.pre") and leaves it to the reader to know what the name means; PRE does.
Touches no file.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers import decoders as backend_decoders

from ..checks import found
from ..errors import TokenizerError

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


class Metadata:
    """Typed access to GGUF metadata: TokenizerError names the file and the key."""

    def __init__(self, values: dict[str, Any], source: str):
        self.values, self.source = values, source

    def wrong(self, key: str, expected: str, value: Any) -> TokenizerError:
        """The error for a key whose value is not as expected."""
        return TokenizerError(f"{self.source}: tokenizer.ggml.{key}: expected {expected}, found {found(value)}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of tokenizer.ggml.<key>, of this very type; default when absent."""
        value = self.values.get(f"tokenizer.ggml.{key}", default)
        if value is not default and type(value) is not kind:
            raise self.wrong(key, f"a value of type {kind.__name__}", value)
        return value

    def array(self, key: str, kind: type, length: int | None = None) -> list[Any]:
        """A list of values of one type, of this length if given."""
        value = self.get(key, list)
        if value is None or any(type(item) is not kind for item in value):
            raise self.wrong(key, f"an array of {kind.__name__}", value)
        if length is not None and len(value) != length:
            raise self.wrong(key, f"one entry for each of {length} tokens", f"{len(value)} entries")
        return value

    def token_id(self, name: str, count: int) -> int | None:
        """Id of the bos, eos, ... token below count, or None."""
        value = self.get(f"{name}_token_id", int)
        if value is not None and not 0 <= value < count:
            raise self.wrong(f"{name}_token_id", f"an id in [0, {count})", value)
        return value


def build(values: dict[str, Any], source: str) -> Backend:
    """The tokenizer that the metadata `values` of the file `source` describe.

    Control and unknown tokens become special, user-defined ones plain added tokens; unused ones are left out."""
    meta = Metadata(values, source)
    if (model := meta.get("model", str)) != "gpt2":
        raise meta.wrong("model", "gpt2 (byte-level BPE)", model)
    if (pre := meta.get("pre", str, "default")) not in PRE:
        raise meta.wrong("pre", f"one of {', '.join(PRE)}", pre)
    tokens = meta.array("tokens", str)
    types = meta.array("token_type", int, len(tokens))
    backend = Backend(_bpe(meta, tokens, types, ignore_merges=pre in WHOLE))
    if pre in QWEN:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    prefix = meta.get("add_space_prefix", bool, False)
    first = PRE[pre]
    split = isinstance(first, pre_tokenizers.Split)
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    backend.pre_tokenizer = level if first is None else pre_tokenizers.Sequence([first, level])  # type: ignore[assignment]
    backend.decoder = backend_decoders.ByteLevel()  # type: ignore[assignment]
    added = [(t, kind) for t, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL, USER)]
    backend.add_tokens([AddedToken(t, special=kind != USER, normalized=False) for t, kind in added])
    _surround(meta, backend, tokens, bos=meta.get("add_bos_token", bool, pre in WHOLE))
    return backend


def _bpe(meta: Metadata, tokens: list[str], types: list[int], ignore_merges: bool) -> models.BPE:
    vocab: dict[str, int] = {}
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        if not NORMAL <= kind <= UNUSED:
            raise meta.wrong("token_type", "types 1 to 5", kind)
        if kind == UNUSED:
            continue
        if not token or vocab.setdefault(token, i) != i:
            raise meta.wrong("tokens", "tokens that are not empty and all different", token)
    merges = []
    for merge in meta.array("merges", str):
        left, space, right = merge.partition(" ")
        if not space or any(part not in vocab for part in (left, right, left + right)):
            raise meta.wrong("merges", "two tokens whose concatenation is a token", merge)
        merges.append((left, right))
    return models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)


def _surround(meta: Metadata, backend: Backend, tokens: list[str], bos: bool) -> None:
    """Have the post-processor put the begin token before a prompt and the end token after it, as the file asks."""
    before, after = ("bos", bos), ("eos", meta.get("add_eos_token", bool, False))
    names: list[tuple[str, int]] = []
    for name, wanted in (before, after):
        i = meta.token_id(name, len(tokens))
        if wanted and i is None:
            raise meta.wrong(f"{name}_token_id", f"an id, as add_{name}_token is true", None)
        if wanted and i is not None:
            names.append((tokens[i], i))
    if names:
        order = ([tokens[names[0][1]]] if bos else []) + ["$A"] + ([names[-1][0]] if after[1] else [])
        backend.post_processor = processors.TemplateProcessing(single=order, special_tokens=names)  # type: ignore[assignment]
