"""Token ids of a prompt's text. A text that is too long is refused before it is encoded."""

from __future__ import annotations

import logging

from ..errors import RequestError
from .tokenizer import Tokenizer

_log = logging.getLogger("ostinato")
_told = False  # the warning is logged once per process


def encode(text: str, t: Tokenizer, max_len: int, parse_special: bool = False, tell: bool = True) -> list[int]:
    """Token ids of a prompt. RequestError if it cannot be encoded, or if its length implies max_len tokens or more.

    parse_special: read control tokens in the text as control tokens. Otherwise they are plain characters; with `tell`
    the first such prompt of a process is logged."""
    expect_room(f"prompt: expected fewer than {max_len} tokens (max_len)", text, t, max_len - 1)
    if tell and not parse_special:
        _tell(text, t)
    return t.encode(text, special=parse_special)


def expect_room(expected: str, text: str, t: Tokenizer, most: int) -> None:
    """RequestError with the message `expected` if the length of a text implies more than `most` tokens."""
    if (least := t.at_least(text, most)) > most:
        raise RequestError(f"{expected}, found at least {least} in {len(text)} characters")


def _tell(text: str, t: Tokenizer) -> None:
    global _told
    if not _told and (token := t.control_in(text)) is not None:
        _told = True
        _log.warning(
            "prompt: %r is taken as plain characters, not as the control token; parse_special (--parse-special) "
            "changes that, and chat() writes control tokens itself", token
        )  # fmt: skip
