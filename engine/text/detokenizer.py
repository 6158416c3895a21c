"""The detokenizer: token ids to text, one token at a time, for whole outputs and for streams.

Each token becomes its bytes. Bytes become characters as soon as a UTF-8 sequence is complete. So a token costs time in
proportion to its own length, and the only text held back is an incomplete UTF-8 sequence.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Container
from typing import Any

from ..errors import TokenizerError

_TIDIED = [
    ".",
    "?",
    "!",
    ",",
    "n't",
    "'m",
    "'s",
    "'ve",
    "'re",
]  # as the tokenizers package does
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>", re.ASCII)


def byte_alphabet() -> dict[str, int]:
    """The 256 printable characters that stand for bytes in a byte-level vocabulary, as {character: byte}.

    A printable Latin-1 byte is its own character. The other bytes, in order, are the characters from U+0100 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(rest)}


ALPHABET = byte_alphabet()


class Spelling:
    """How the tokens of a vocabulary spell bytes.

    decoder: the `decoder` object of a tokenizer.json. TokenizerError if it has a step that is not supported."""

    def __init__(self, decoder: Any, source: str):
        self.byte_level = False  # tokens are written in ALPHABET
        self.byte_fallback = False  # the token "<0x0A>" is the byte 0x0A
        self.replaced: list[tuple[str, str]] = []  # e.g. ("▁", " ")
        self.continues = ""  # "##": a token with this prefix continues a word; any other begins one
        self.tidied: list[str] = []  # strings that lose the space before them: " ." becomes "."
        self.strip = 0  # spaces that encoding adds before a text and decoding removes
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
        """Apply one step of the decoder to the fields; False if the step is not supported."""
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
        """The bytes of a token of the vocabulary."""
        if self.byte_level:
            try:
                return bytes(map(ALPHABET.__getitem__, token))
            except KeyError:  # a token outside ALPHABET, an added one, is its own text
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
    """The text of one sequence: push each token as it arrives, then flush."""

    def __init__(self, piece: Callable[[int], bytes], strip: int, left_out: Container[int] = ()):
        self._piece = piece  # token id -> its bytes
        self._strip = strip  # leading spaces still to be removed
        self.left_out = left_out  # ids whose text is omitted: control tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._whole = True  # no incomplete UTF-8 sequence is pending

    def push(self, token_id: int) -> str:
        """The text that this token completes, maybe "". RequestError for an id without a token."""
        if token_id in self.left_out:
            return ""
        piece = self._piece(token_id)
        if self._whole:
            try:
                text = piece.decode()  # the common case, three times as fast as the incremental decoder
                return self._cut(text) if self._strip else text
            except UnicodeDecodeError:
                pass  # an incomplete or invalid UTF-8 sequence
        text = self._utf8.decode(piece)
        self._whole = not self._utf8.getstate()[0]
        return self._cut(text)

    def spelled(self, token_id: int) -> str:
        """The text of a token by itself, even if it is omitted from the output. Changes no state."""
        return self._piece(token_id).decode("utf-8", "replace")

    def flush(self) -> str:
        """The end of the text: U+FFFD if a UTF-8 sequence is incomplete, else ""."""
        self._whole = True
        return self._cut(self._utf8.decode(b"", final=True))

    def _cut(self, text: str) -> str:
        while self._strip and text:
            self._strip = self._strip - 1 if text[0] == " " else 0
            text = text[1:] if text[0] == " " else text
        return text
