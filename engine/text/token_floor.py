"""A lower bound on the number of tokens of a text. It costs far less than encoding and refuses texts that cannot fit.

Let m be the most bytes of one kind, letters for example, that a single token of the vocabulary has. Then a text with n
such bytes has at least n / m tokens. There is no such bound where an unknown token may stand for any number of
characters. WordPiece gives at least one token for each word.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as Backend

CHEAP = 8  # characters per allowed token; shorter texts are encoded without a check
_ALL = frozenset(range(256))
_LETTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
_KEEPERS = ("ByteLevel", "Metaspace", "Digits", "UnicodeScripts", "Split", "Punctuation")  # pre-tokenizers
_WORDS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


class TokenFloor:
    """The bound for one vocabulary. bytes_of: token id -> its bytes."""

    def __init__(self, backend: Backend, bytes_of: Callable[[int], bytes]) -> None:
        self._backend, self._bytes_of = backend, bytes_of
        self._byte_level = any(step["type"] == "ByteLevel" for step in _steps(backend.decoder))
        self._splits_words = any(step["type"] in _WORDS for step in _steps(backend.pre_tokenizer))
        self._most: list[tuple[bytes, int]] | None = None  # computed at the first long text

    def of(self, text: str, limit: int) -> int:
        """A lower bound on the tokens of `text`; 0 if the text is short enough to be encoded for `limit` tokens."""
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
        """(bytes of other kinds, most bytes of this kind in one token) for each kind; [] if there is no bound."""
        if not self._bounded():
            return []
        spaces_vanish = any(t.lstrip or t.rstrip for t in self._added())
        kinds = [_LETTERS] if spaces_vanish else [_ALL, _LETTERS, _ALL - set(range(128)), _ALL - set(b" \t\n\r\v\f")]
        tokens = [self._covers(token, i) for token, i in self._backend.get_vocab(with_added_tokens=True).items()]
        rests = [bytes(_ALL - kind) for kind in kinds]
        return [(rest, max(1, *(len(token.translate(None, rest)) for token in tokens))) for rest in rests]

    def _covers(self, token: str, i: int) -> bytes:
        """The bytes of normalised text that a token covers.

        In normalised text a space may be another character, and a byte may be written as <0x0A>."""
        covered = self._bytes_of(i)
        return covered if self._byte_level or len(covered) == 1 else max(covered, token.encode(), key=len)

    def _bounded(self) -> bool:
        """Whether each character of normalised text is in a token, and each token has a largest length."""
        steps = _steps(self._backend.pre_tokenizer)
        if any(step["type"] not in _KEEPERS or step.get("behavior") == "Removed" for step in steps):
            return False
        model, vocab = self._backend.model, self._backend.get_vocab()
        fallback = getattr(model, "byte_fallback", False) and all(f"<0x{b:02X}>" in vocab for b in range(256))
        return self._byte_level or bool(fallback)

    def _added(self) -> list[Any]:
        return list(self._backend.get_added_tokens_decoder().values())


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer or decoder, as JSON objects of a tokenizer.json."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    return state.get("pretokenizers") or state.get("decoders") or [state]
