"""From token ids back to text, token by token: the same code serves whole outputs and streams.

A token is turned into its bytes, bytes into characters as soon as they are complete. So each token costs its own
length, and only an unfinished UTF-8 sequence is ever held back.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Container
from typing import Any

from ..errors import TokenizerError

_TIDIED = [".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"]  # as the tokenizers package does, token by token
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>", re.ASCII)


def byte_alphabet() -> dict[str, int]:
    """The 256 visible characters with which byte-level vocabularies spell bytes, as character: byte.

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from U+0100 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(rest)}


ALPHABET = byte_alphabet()


class Spelling:
    """How a vocabulary spells bytes, from the decoder part of a tokenizer.json; TokenizerError for unknown kinds."""

    def __init__(self, decoder: Any, source: str):
        self.byte_level = False  # tokens are in the byte alphabet
        self.byte_fallback = False  # "<0x0A>" is that byte
        self.replaced: list[tuple[str, str]] = []  # e.g. ("▁", " ")
        self.continues = ""  # "##": a token that begins so follows without a space, all others after one
        self.tidied: list[str] = []  # what then loses its space: " ." becomes "."
        self.strip = 0  # spaces that the tokenizer puts before a text, and that decoding takes off again
        steps: list[Any] = [decoder]
        if isinstance(decoder, dict) and decoder.get("type") == "Sequence":
            steps = decoder["decoders"]
        kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
        for step, kind in zip(steps, kinds, strict=True):
            if not self._take(step, kind, fused="Fuse" in kinds):
                raise TokenizerError(f"{source}: decoder: not supported: {json.dumps(step)[:120]}")
        if self.byte_level and len([kind for kind in kinds if kind != "Fuse"]) > 1:
            raise TokenizerError(f"{source}: decoder: ByteLevel cannot be combined, found {', '.join(map(str, kinds))}")

    def _take(self, step: Any, kind: str | None, fused: bool) -> bool:
        """Note one step of the decoder; False if it is not known."""
        if kind == "ByteLevel":
            self.byte_level = True
        elif kind == "ByteFallback":
            self.byte_fallback = True
        elif kind == "Replace" and "String" in step["pattern"]:
            self.replaced.append((step["pattern"]["String"], step["content"]))
        elif kind == "WordPiece":
            self.continues, self.strip = step["prefix"], 1
            self.tidied = _TIDIED if step["cleanup"] else []
        elif kind == "Metaspace":
            self.replaced.append((step["replacement"], " "))
            self.strip = 0 if step.get("prepend_scheme") == "never" else 1
        elif kind == "Strip" and step["content"] == " " and not step["stop"] and fused:
            self.strip = step["start"]
        else:
            return kind == "Fuse"
        return True

    def bytes_of(self, token: str) -> bytes:
        """The bytes that a token of the vocabulary stands for."""
        if self.byte_level:
            try:
                return bytes(map(ALPHABET.__getitem__, token))
            except KeyError:  # not spelled in the alphabet: the token is its own text
                return token.encode()
        if self.byte_fallback and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        if self.continues:
            begins = not token.startswith(self.continues)
            token = " " + token if begins else token[len(self.continues) :]
            for mark in self.tidied:
                token = token.replace(" " + mark, mark)
        for old, new in self.replaced:
            token = token.replace(old, new)
        return token.encode()


class Decoder:
    """Text of one sequence as its tokens arrive: push them one by one, then flush."""

    def __init__(self, piece: Callable[[int], bytes], strip: int, left_out: Container[int] = ()):
        self._piece = piece  # bytes of a token id
        self._strip = strip  # leading spaces still to be dropped
        self.left_out = left_out  # ids that are no part of the text: control tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._whole = True  # no character has begun in earlier tokens

    def push(self, token_id: int) -> str:
        """The text that this token completes, often none; RequestError for an id that no token has."""
        if token_id in self.left_out:
            return ""
        piece = self._piece(token_id)
        if self._whole:
            try:
                text = piece.decode()  # nearly every token: a third of the time of the incremental decoder
                return self._cut(text) if self._strip else text
            except UnicodeDecodeError:
                pass  # part of a character, or none
        text = self._utf8.decode(piece)
        self._whole = not self._utf8.getstate()[0]
        return self._cut(text)

    def spelled(self, token_id: int) -> str:
        """What a token spells by itself, also if it is left out of the text. Changes nothing."""
        return self._piece(token_id).decode("utf-8", "replace")

    def flush(self) -> str:
        """The end of the text: U+FFFD if the last character is incomplete, else nothing."""
        self._whole = True
        return self._cut(self._utf8.decode(b"", final=True))

    def _cut(self, text: str) -> str:
        while self._strip and text:
            self._strip = self._strip - 1 if text[0] == " " else 0
            text = text[1:] if text[0] == " " else text
        return text
