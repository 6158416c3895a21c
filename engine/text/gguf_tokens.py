"""The tokens of a GGUF file and their types, for every kind of vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

from ..keys import Keys

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)  # tokenizer.ggml.token_type


@dataclass(frozen=True)
class Tokens:
    """texts, types: by token id. ids: text -> token id, without unused tokens."""

    texts: list[str]
    types: list[int]
    ids: dict[str, int]

    @staticmethod
    def read(meta: Keys) -> Tokens:
        """Read "tokens" and "token_type". TokenizerError if their lengths differ or a token is empty or double."""
        texts = meta.array("tokens", str)
        types = meta.array("token_type", int, len(texts))
        ids: dict[str, int] = {}
        for i, (text, kind) in enumerate(zip(texts, types, strict=True)):
            if not NORMAL <= kind <= BYTE:
                meta.wrong("token_type", f"types {NORMAL} to {BYTE}", kind)
            if kind != UNUSED and (not text or ids.setdefault(text, i) != i):
                meta.wrong("tokens", "tokens that are not empty and all different", text)
        return Tokens(texts, types, ids)
