"""A lower bound on the tokens of a text, far cheaper than the tokens: what cannot fit is refused before it is encoded.

A token stands for at most as many bytes of a kind (letters, say) as the vocabulary's token with the most of them has.
So a text has at least as many tokens as its bytes of that kind divided by this number. Vocabularies that turn any
number of characters into one token, an unknown one, have no such bound; WordPiece has at least a token for each word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as Backend

CHEAP = 8  # characters for each token allowed: no longer text is looked at, encoding it costs little
_ALL = frozenset(range(256))
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_KEEPERS = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation")  # pre-tokenizers
_WORDS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


class TokenFloor:
    """Bounds for one vocabulary. bytes_of: the bytes of text that an id stands for."""

    def __init__(self, backend: Backend, bytes_of: Callable[[int], bytes]) -> None:
        self._backend, self._bytes_of = backend, bytes_of
        self._byte_level = any(step["type"] == "ByteLevel" for step in _steps(backend.decoder))
        self._splits_words = any(step["type"] in _WORDS for step in _steps(backend.pre_tokenizer))
        self._most: list[tuple[bytes, int]] | None = None  # not worked out yet

    def of(self, text: str, limit: int) -> int:
        """Tokens that `text` has at least, or 0 if it is short for `limit` tokens."""
        if len(text) <= CHEAP * limit:
            return 0
        normalizer = self._backend.normalizer
        data = (normalizer.normalize_str(text) if normalizer is not None else text).encode(errors="replace")
        if self._most is None:
            self._most = self._kinds()
        bounds = [-(-len(data.translate(None, rest)) // most) for rest, most in self._most]
        if self._splits_words:
            longest = max((len(t.content.split()) for t in self._added()), default=1)
            bounds.append(-(-len(data.split()) // max(longest, 1)))
        return max(bounds, default=0)

    def _kinds(self) -> list[tuple[bytes, int]]:
        """For each kind of bytes: all others, and how many of the kind a token has at most. [] if there is no bound."""
        if not self._bounded():
            return []
        spaces_vanish = any(t.lstrip or t.rstrip for t in self._added())
        kinds = [_LETTERS] if spaces_vanish else [_ALL, _LETTERS, _ALL - set(range(128)), _ALL - set(b" \t\n\r\v\f")]
        tokens = [self._covers(token, i) for token, i in self._backend.get_vocab(with_added_tokens=True).items()]
        rests = [bytes(_ALL - kind) for kind in kinds]
        return [(rest, max(1, *(len(token.translate(None, rest)) for token in tokens))) for rest in rests]

    def _covers(self, token: str, i: int) -> bytes:
        """What of a normalised text a token stands for: spaces may be written otherwise in it, bytes be spelled out."""
        covered = self._bytes_of(i)
        return covered if self._byte_level or len(covered) == 1 else max(covered, token.encode(), key=len)

    def _bounded(self) -> bool:
        """Whether every character of a normalised text goes into a token, and no token takes any number of them."""
        steps = _steps(self._backend.pre_tokenizer)
        if any(step["type"] not in _KEEPERS or step.get("behavior") == "Removed" for step in steps):
            return False
        model, vocab = self._backend.model, self._backend.get_vocab()
        fallback = getattr(model, "byte_fallback", False) and all(f"<0x{b:02X}>" in vocab for b in range(256))
        return self._byte_level or bool(fallback)

    def _added(self) -> list[Any]:
        return list(self._backend.get_added_tokens_decoder().values())


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or decoder, as a tokenizer.json writes them."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state.get("pretokenizers") or state.get("decoders") or [state]
