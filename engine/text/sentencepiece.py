"""SentencePiece BPE of a GGUF file ("tokenizer.ggml.model" = llama), as Llama 2, Mistral 7B and Phi-3 mini have it.

A SentencePiece vocabulary has a score for each token. Encoding merges the pair of neighbours whose token has the
highest score. The tokenizers package needs a list of merges instead, best first. So every split of a token into two
tokens becomes a merge, ranked by the score of the token. A character without a token is encoded by byte fallback: the
tokens <0x00> to <0xFF> of its UTF-8 bytes.
"""

from __future__ import annotations

import math
import re

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from ..keys import Keys
from .gguf_tokens import BYTE, CONTROL, NORMAL, UNKNOWN, Tokens

SPACE = "▁"  # U+2581 is a space in a token
MAX_TOKEN = 512  # characters, as every split of a token is tried; SentencePiece trains tokens of at most 16 by default
MAX_SPLITS = 1 << 22  # of all tokens together; the largest known vocabulary, 262,144 tokens, has under 2 million
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def build(meta: Keys, tokens: Tokens) -> Backend:
    """The tokenizer; TokenizerError names the file and the key."""
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):  # normalisation that is not supported
        if meta.get(key):
            meta.wrong(key, "nothing", meta.get(key))
    backend = Backend(_model(meta, tokens))
    prefix = meta.typed("add_space_prefix", bool, True)
    if prefix and _mistral_control(tokens):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "first", split=False)  # type: ignore[assignment]
    else:  # the normalizer also adds a space after each added token
        steps = [normalizers.Prepend(SPACE)] if prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])  # type: ignore[assignment]
    spelling = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(  # type: ignore[assignment]
        [*spelling, decoders.Strip(" ", 1, 0)] if prefix else spelling
    )
    return backend


def _mistral_control(tokens: Tokens) -> bool:
    """Whether [INST] is a control token, as in Mistral's vocabularies from the second version on.

    The chat templates of these write the space after a control token. Only the beginning of a prompt gets one here."""
    i = tokens.ids.get("[INST]")
    return i is not None and tokens.types[i] == CONTROL


def _model(meta: Keys, tokens: Tokens) -> models.BPE:
    scores = meta.array("scores", float, len(tokens.texts))
    if wrong := next((s for s in scores if not math.isfinite(s)), None):
        meta.wrong("scores", "finite numbers", wrong)
    if wrong := next((text for text in tokens.ids if len(text) > MAX_TOKEN), None):
        meta.wrong("tokens", f"tokens of at most {MAX_TOKEN} characters", wrong)
    if (characters := sum(map(len, tokens.ids))) > MAX_SPLITS:
        meta.wrong("tokens", f"at most {MAX_SPLITS} characters in all tokens", characters)
    named = {text for text, kind in zip(tokens.texts, tokens.types, strict=True) if kind == BYTE}
    if wrong := next((text for text in named if not _BYTE.fullmatch(text)), None):
        meta.wrong("tokens", "byte tokens <0x00> to <0xFF>", wrong)
    unknown = meta.token_id("unknown_token_id", len(tokens.texts))
    if unknown is None and UNKNOWN in tokens.types:
        unknown = tokens.types.index(UNKNOWN)
    spelled = sum(f"<0x{b:02X}>" in tokens.ids for b in range(256))
    if unknown is None and spelled < 256:  # the tokenizers package would drop characters
        meta.wrong("tokens", "a token for each of 256 bytes, or an unknown token", f"{spelled} bytes")
    return models.BPE(
        vocab=tokens.ids,
        merges=_merges(tokens, scores),
        unk_token=None if unknown is None else tokens.texts[unknown],
        fuse_unk=True,
        byte_fallback=spelled > 0,
    )


def _merges(tokens: Tokens, scores: list[float]) -> list[tuple[str, str]]:
    """All splits of a normal token into two. They are sorted by the token's score, highest first, then by ids.

    Other tokens are no part of a merge, so that no text becomes a control token."""
    normal = {text: i for text, i in tokens.ids.items() if tokens.types[i] == NORMAL}
    merges = []
    for text, i in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                merges.append((-scores[i], i, normal[left], normal[right]))
    merges.sort()
    return [(tokens.texts[left], tokens.texts[right]) for _, _, left, right in merges]
