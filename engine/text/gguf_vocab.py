"""A tokenizer from the metadata of a GGUF file.

"tokenizer.ggml.model" is the kind of vocabulary: byte-level BPE (gpt2) or SentencePiece BPE (llama). This module builds
the first kind. To both kinds it adds the added tokens, and the begin and end tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers import decoders as backend_decoders

from ..errors import TokenizerError
from ..keys import Keys
from . import sentencepiece
from .gguf_tokens import BYTE, CONTROL, UNKNOWN, USER, Tokens
from .pre_tokenizers import PRE


def reader(values: dict[str, Any], source: str) -> Keys:
    """Typed access to the keys "tokenizer.ggml.*". TokenizerError names the file and the key."""
    return Keys(values, source, prefix="tokenizer.ggml.", error=TokenizerError)


def build(values: dict[str, Any], source: str) -> Backend:
    """The tokenizer from the metadata `values` of the file `source`.

    Control and unknown tokens become special added tokens, user-defined tokens become plain added tokens. Unused tokens
    are left out. TokenizerError names the file and the key that is missing or wrong."""
    meta = reader(values, source)
    model = meta.typed("model", str)
    if model not in MODELS:
        meta.wrong("model", " or ".join(f"{name} ({kind})" for name, (kind, _) in MODELS.items()), model)
    tokens = Tokens.read(meta)
    backend = MODELS[model][1](meta, tokens)
    phi3 = model == "llama" and values.get("general.architecture") == "phi3"
    added = [(t, kind) for t, kind in zip(tokens.texts, tokens.types, strict=True) if kind in (UNKNOWN, CONTROL, USER)]
    backend.add_tokens([_added(text, kind, phi3 and text not in PHI3_PLAIN) for text, kind in added])
    default = model == "llama" or PRE[meta.get("pre", "default")].bos
    _surround(meta, backend, tokens.texts, bos=meta.typed("add_bos_token", bool, default))
    return backend


def _added(text: str, kind: int, rstrip: bool) -> AddedToken:
    return AddedToken(text, special=kind != USER, normalized=False, rstrip=rstrip)


def _byte_level(meta: Keys, tokens: Tokens) -> Backend:
    if (pre := meta.typed("pre", str, "default")) not in PRE:
        meta.wrong("pre", f"one of {', '.join(PRE)}", pre)
    if BYTE in tokens.types:
        meta.wrong("token_type", f"no type {BYTE} in a byte-level vocabulary", BYTE)
    rules = PRE[pre]
    backend = Backend(models.BPE(vocab=tokens.ids, merges=_merges(meta, tokens), ignore_merges=rules.whole))
    if rules.nfc:
        backend.normalizer = normalizers.NFC()  # type: ignore[assignment]
    prefix = meta.typed("add_space_prefix", bool, False)
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=rules.gpt2)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*rules.steps, level])  # type: ignore[assignment]
    backend.decoder = backend_decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _merges(meta: Keys, tokens: Tokens) -> list[tuple[str, str]]:
    ids, merges = tokens.ids, []
    for merge in meta.array("merges", str):
        left, space, right = merge.partition(" ")
        if not space or left not in ids or right not in ids or left + right not in ids:
            meta.wrong("merges", "two tokens whose concatenation is a token", merge)
        merges.append((left, right))
    return merges


def _surround(meta: Keys, backend: Backend, tokens: list[str], bos: bool) -> None:
    """Set the post-processor, which adds the begin token before a prompt and the end token after it."""
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


MODELS: dict[str, tuple[str, Callable[[Keys, Tokens], Backend]]] = {  # tokenizer.ggml.model: its name, its builder
    "gpt2": ("byte-level BPE", _byte_level),
    "llama": ("SentencePiece BPE", sentencepiece.build),
}
# Phi-3's other added tokens remove the white space after them. Its tokenizer.json says so; GGUF has no key for it.
PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")
